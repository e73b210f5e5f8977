package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// kernelLayout is the version of what FetchKernel leaves in the cache. Raise it
// when wantedModules or the files change, so that old directories are not used.
const kernelLayout = 1

// suites says where Debian publishes each generation of its kernel.
var suites = map[string][][2]string{
	"5.10": {{"debian", "bullseye"}, {"debian-security", "bullseye-security"}},
	"6.1":  {{"debian", "bookworm"}},
	"6.12": {{"debian", "trixie"}},
	"7.2":  {{"debian", "sid"}},
}

// flavours are Debian's builds of a kernel for x86-64.
var flavours = []string{"cloud-amd64", "amd64", "rt-amd64"}

// Kernels returns the generations the lab knows, oldest first.
func Kernels() []string { return []string{"5.10", "6.1", "6.12", "7.2"} }

// Kernel is a distribution's kernel, unpacked.
type Kernel struct {
	Version string // generation: "6.1"
	Flavour string // "cloud-amd64"
	Release string // what uname -r says: "6.1.0-50-cloud-amd64"
	Image   string // path of the bzImage
	Config  string // path of the kernel's .config, "" when the package has none
	Modules string // directory of uncompressed modules, and of the file "order"
}

// origin is where a kernel comes from.
type origin struct {
	name  string      // in the cache
	from  [][2]string // archive and suite of each index to look in
	image string      // "" for the newest: "6.19.14+deb13", without the flavour
}

// wanted is SUITE or SUITE:RELEASE.
var wanted = regexp.MustCompile(`^([a-z][a-z-]*)(?::([0-9][0-9a-z.+~-]*))?$`)

// parseOrigin reads what Config.Kernel says.
func parseOrigin(version string) (origin, error) {
	if from, ok := suites[version]; ok {
		return origin{name: version, from: from}, nil
	}
	m := wanted.FindStringSubmatch(version)
	if m == nil {
		return origin{}, fmt.Errorf("kernel %q: the lab knows %s, and Debian's suites as SUITE or SUITE:RELEASE",
			version, strings.Join(Kernels(), ", "))
	}
	archive := "debian"
	if strings.HasSuffix(m[1], "-security") {
		archive = "debian-security"
	}
	r := origin{name: m[1], from: [][2]string{{archive, m[1]}}, image: m[2]}
	if r.image != "" {
		r.name += "_" + r.image
	}
	return r, nil
}

// FetchKernel returns a kernel from the cache, or from the package archive: the
// newest one of its suite, or the release that version names. version is one of
// Kernels, SUITE or SUITE:RELEASE; sid moves on, so the release of "7.2" can be a
// later one.
func FetchKernel(ctx context.Context, version, flavour string) (*Kernel, error) {
	from, err := parseOrigin(version)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(flavours, flavour) {
		return nil, fmt.Errorf("kernel flavour %q: the lab knows %s", flavour, strings.Join(flavours, ", "))
	}
	name := fmt.Sprintf("kernel-%s-%s-v%d", from.name, flavour, kernelLayout)
	dir, err := cached(ctx, name, func(dir string) error {
		// An archive's newest package can be missing from its pool: leave out the
		// later suites then, one after the other.
		var errs []error
		for n := len(from.from); n > 0; n-- {
			err := fetchInto(ctx, dir, flavour, from.image, from.from[:n])
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, fmt.Errorf("fetch kernel %s %s: %w", version, flavour, err)
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, fmt.Errorf("kernel cache %s: %w", dir, err)
	}
	k := &Kernel{
		Version: version,
		Flavour: flavour,
		Release: strings.TrimSpace(string(release)),
		Image:   filepath.Join(dir, "vmlinuz"),
		Modules: filepath.Join(dir, "modules"),
	}
	if c := filepath.Join(dir, "config"); exists(c) {
		k.Config = c
	}
	return k, nil
}

// fetchInto downloads a kernel of a flavour, the newest one if image is "", and
// leaves in dir its image, its configuration, its release and the modules the lab
// uses.
func fetchInto(ctx context.Context, dir, flavour, image string, from [][2]string) error {
	work, err := os.MkdirTemp(filepath.Dir(dir), "fetch.tmp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	a, err := newApt(ctx, filepath.Join(work, "apt"), from)
	if err != nil {
		return err
	}
	if image == "" {
		image, err = a.newestImage(ctx, flavour)
	} else {
		image = "linux-image-" + image + "-" + flavour
	}
	if err != nil {
		return err
	}
	release, packages, err := a.kernelPackages(ctx, image)
	if err != nil {
		return err
	}
	root := filepath.Join(work, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := a.unpack(ctx, root, packages); err != nil {
		return err
	}
	if len(packages) == 1 && strings.HasPrefix(packages[0], "linux-binary-") {
		if err := os.MkdirAll(filepath.Join(root, "lib/modules", release, "kernel"), 0o755); err != nil {
			return err
		}
	}
	return keep(ctx, root, dir, release)
}

// newestImage resolves a flavour's meta package to the image package it stands for.
func (a *apt) newestImage(ctx context.Context, flavour string) (string, error) {
	meta := "linux-image-" + flavour
	deps, err := a.depends(ctx, meta)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(deps, func(d string) bool { return strings.HasPrefix(d, "linux-image-") })
	if i < 0 {
		return "", fmt.Errorf("package %s depends on no kernel image: %v", meta, deps)
	}
	return deps[i], nil
}

// kernelPackages returns an image package's release and the packages that hold
// the image and the modules. From 6.19 on Debian's linux-image-RELEASE is empty
// and depends on linux-binary- and linux-modules-; the latter can be missing.
func (a *apt) kernelPackages(ctx context.Context, image string) (string, []string, error) {
	release := strings.TrimPrefix(image, "linux-image-")
	deps, err := a.depends(ctx, image)
	if err != nil {
		return "", nil, err
	}
	var split []string
	for _, d := range deps {
		switch {
		case strings.HasPrefix(d, "linux-binary-"):
			split = append(split, d)
		case strings.HasPrefix(d, "linux-modules-"):
			// A suite can keep an older release's image and not its modules.
			if a.has(ctx, d) {
				split = append(split, d)
			}
		}
	}
	if len(split) > 0 {
		return release, split, nil
	}
	return release, []string{image}, nil
}

// keep moves from an unpacked package what the lab uses.
func keep(ctx context.Context, root, dir, release string) error {
	image := firstExisting(root,
		"boot/vmlinuz-"+release,
		"usr/lib/modules/"+release+"/vmlinuz",
		"lib/modules/"+release+"/vmlinuz")
	if image == "" {
		return fmt.Errorf("the packages of %s hold no vmlinuz", release)
	}
	if err := os.Rename(image, filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	config := firstExisting(root,
		"boot/config-"+release,
		"usr/lib/modules/"+release+"/config",
		"lib/modules/"+release+"/config")
	if config != "" {
		if err := os.Rename(config, filepath.Join(dir, "config")); err != nil {
			return err
		}
	}
	tree := firstExisting(root, "lib/modules/"+release+"/kernel", "usr/lib/modules/"+release+"/kernel")
	if tree == "" {
		return fmt.Errorf("the packages of %s hold no modules", release)
	}
	if err := keepModules(ctx, tree, filepath.Join(dir, "modules")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "release"), []byte(release+"\n"), 0o644)
}

func firstExisting(root string, names ...string) string {
	for _, n := range names {
		if p := filepath.Join(root, n); exists(p) {
			return p
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
