package kernel

import (
	"fmt"

	"github.com/umbravm/umbra/mem"
)

// Eval computes an expression written as C has it over the kernel's objects and
// returns what it stands for, read from the view's memory:
//
//	init_task.comm              a member; . and -> both follow pointers
//	*init_task.mm->mmap_base    what a pointer points to
//	&init_task.tasks            an address
//	init_task.cpus_mask.bits[0] an element
//	(struct file *)0xffff…      a cast; to a type of the kernel
//	per_cpu(runqueues, 0).curr  a per-CPU variable, or a __percpu pointer, of one CPU
//	&init_task + 1              pointers count in what they point to
//
// BTF has types only of per-CPU variables, so what a name stands for is known for
// those and for the well-known globals of init and the core; the address of any
// other symbol can be taken and cast.
func (v *View) Eval(expr string) (Value, error) {
	tree, err := parseExpr(expr)
	if err != nil {
		return Value{}, fmt.Errorf("expression %q: %w", expr, err)
	}
	types, err := v.Types()
	if err != nil {
		return Value{}, err
	}
	var out Value
	err = v.Do(func(w *Walk) {
		e := evaluator{w: w, types: types}
		out = Value{}
		o, err := e.eval(tree)
		if err == nil {
			out, err = e.value(o)
		}
		if err != nil {
			w.Fail(err)
		}
	})
	if err != nil {
		return Value{}, fmt.Errorf("expression %q: %w", expr, err)
	}
	out.Expr = expr
	return out, nil
}

// Value is what an expression stands for.
type Value struct {
	Expr string    `json:"expression"`
	Type string    `json:"type"`    // as C declares it
	Addr *mem.Virt `json:"address"` // nil of what is no object in memory
	Node Node      `json:"value"`
}

// Address returns what an expression points to, if it is a pointer, or else the
// address of the object it names. A symbol alone is its address.
func (v *View) Address(expr string) (mem.Virt, error) {
	tree, err := parseExpr(expr)
	if err != nil {
		return 0, fmt.Errorf("expression %q: %w", expr, err)
	}
	if tree.op == opName {
		return v.Symbol(tree.name)
	}
	value, err := v.Eval(expr)
	if err != nil {
		return 0, err
	}
	if p, ok := value.Node.Scalar.(mem.Virt); ok {
		return p, nil
	}
	if value.Addr == nil {
		return 0, fmt.Errorf("expression %q: it has no address", expr)
	}
	return *value.Addr, nil
}
