package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// FetchKernel returns a kernel from the cache, or the newest one of its suite
// from the package archive. version is one of Kernels; sid moves on, so the
// release of "7.2" can be a later one.
func FetchKernel(ctx context.Context, version, flavour string) (*Kernel, error) {
	from, ok := suites[version]
	if !ok {
		return nil, fmt.Errorf("kernel %q: the lab knows %s", version, strings.Join(Kernels(), ", "))
	}
	if !slices.Contains(flavours, flavour) {
		return nil, fmt.Errorf("kernel flavour %q: the lab knows %s", flavour, strings.Join(flavours, ", "))
	}
	name := fmt.Sprintf("kernel-%s-%s-v%d", version, flavour, kernelLayout)
	dir, err := cached(ctx, name, func(dir string) error {
		// An archive's newest package can be missing from its pool: leave out the
		// later suites then, one after the other.
		var errs []error
		for n := len(from); n > 0; n-- {
			err := fetchInto(ctx, dir, flavour, from[:n])
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

// fetchInto downloads the newest kernel of a flavour and leaves in dir its image,
// its configuration, its release and the modules the lab uses.
func fetchInto(ctx context.Context, dir, flavour string, from [][2]string) error {
	work, err := os.MkdirTemp(filepath.Dir(dir), "fetch.tmp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	a, err := newApt(ctx, filepath.Join(work, "apt"), from)
	if err != nil {
		return err
	}
	release, packages, err := a.kernelPackages(ctx, flavour)
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
	return keep(ctx, root, dir, release)
}

// kernelPackages resolves a flavour's meta package to the release it stands for
// and the packages that hold the image and the modules. From 7.x on Debian's
// linux-image-RELEASE is empty and depends on linux-binary- and linux-modules-.
func (a *apt) kernelPackages(ctx context.Context, flavour string) (string, []string, error) {
	meta := "linux-image-" + flavour
	deps, err := a.depends(ctx, meta)
	if err != nil {
		return "", nil, err
	}
	i := slices.IndexFunc(deps, func(d string) bool { return strings.HasPrefix(d, "linux-image-") })
	if i < 0 {
		return "", nil, fmt.Errorf("package %s depends on no kernel image: %v", meta, deps)
	}
	image := deps[i]
	release := strings.TrimPrefix(image, "linux-image-")
	deps, err = a.depends(ctx, image)
	if err != nil {
		return "", nil, err
	}
	var split []string
	for _, d := range deps {
		if strings.HasPrefix(d, "linux-binary-") || strings.HasPrefix(d, "linux-modules-") {
			split = append(split, d)
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
