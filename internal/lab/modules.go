package lab

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// wantedModules are the modules a guest can load: what its devices need, and
// some to be seen in a list of modules. One a kernel has built in, or does not
// have, is left out.
var wantedModules = []string{
	"virtio_pci", "virtio_console", "virtio_net", "e1000",
	"dummy", "veth", "overlay", "bridge",
}

// moduleMax bounds an uncompressed module, in bytes.
const moduleMax = 64 << 20

// keepModules copies the wanted modules and what they depend on from a package's
// module tree to dir, uncompressed, and writes their names in an order in which
// they can be loaded to the file "order".
func keepModules(ctx context.Context, tree, dir string) error {
	files := map[string]string{}
	err := filepath.WalkDir(tree, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if name, _, ok := strings.Cut(e.Name(), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var order []string
	done := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		path, ok := files[name]
		if !ok || done[name] {
			return nil
		}
		done[name] = true
		image, err := readModule(ctx, path)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		deps, err := moduleDepends(image)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range deps {
			if err := visit(d); err != nil {
				return err
			}
		}
		order = append(order, name)
		return os.WriteFile(filepath.Join(dir, name+".ko"), image, 0o644)
	}
	for _, name := range wantedModules {
		if err := visit(name); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "order"), []byte(strings.Join(order, "\n")+"\n"), 0o644)
}

// readModule returns a module's ELF image, decompressed.
func readModule(ctx context.Context, path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".ko":
		return os.ReadFile(path)
	case ".xz":
		return exec.CommandContext(ctx, "xz", "-dc", path).Output()
	case ".zst":
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		d, err := zstd.NewReader(f, zstd.WithDecoderMaxMemory(moduleMax))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return io.ReadAll(io.LimitReader(d, moduleMax))
	}
	return nil, fmt.Errorf("unknown compression %s", filepath.Ext(path))
}

// moduleDepends returns the modules that a module's .modinfo says it needs. The
// packages have no modules.dep: depmod makes it when they are installed.
func moduleDepends(image []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, kv := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(kv, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
