package kernel

import (
	"fmt"

	cbtf "github.com/cilium/ebpf/btf"

	"github.com/umbravm/umbra/mem"
)

// maxCPUs is more than CONFIG_NR_CPUS of any x86-64 kernel (8192).
const maxCPUs = 8192

// perCPU returns the instance that one CPU has of a per-CPU variable, or of what a
// __percpu pointer stands for (include/linux/percpu-defs.h, per_cpu_ptr).
func (e *evaluator) perCPU(n *exprNode) (operand, error) {
	y, err := e.eval(n.y)
	if err != nil {
		return operand{}, err
	}
	cpu, err := e.number(y)
	if err != nil {
		return operand{}, err
	}
	offset := e.w.PerCPUOffset(cpu)
	if err := e.w.Err(); err != nil {
		return operand{}, err
	}
	if n.x.op == opName {
		addr, err := e.w.View().Symbol(n.x.name)
		if err != nil {
			return operand{}, err
		}
		perCPU, err := e.w.View().isPerCPU(addr)
		if err != nil {
			return operand{}, err
		}
		if perCPU {
			t, err := e.variableType(n.x.name)
			return operand{typ: t, addr: addr + offset, isObj: true}, err
		}
	}
	x, err := e.eval(n.x)
	if err != nil {
		return operand{}, err
	}
	if _, ok := cbtf.UnderlyingType(x.typ).(*cbtf.Pointer); !ok {
		return operand{}, fmt.Errorf("per_cpu(%v, …): neither a per-CPU variable nor a pointer", n.x)
	}
	p, err := e.number(x)
	return operand{typ: x.typ, num: p + uint64(offset)}, err
}

// PerCPUOffset returns what is added to the address of a per-CPU variable to get a
// CPU's own (mm/percpu.c, __per_cpu_offset). The walk fails for a CPU that the
// machine cannot have: its entry leads nowhere.
func (w *Walk) PerCPUOffset(cpu uint64) mem.Virt {
	if !w.OK() {
		return 0
	}
	table, err := w.v.Symbol("__per_cpu_offset")
	if err != nil {
		w.Fail(err)
		return 0
	}
	possible, err := w.v.Symbol("__cpu_possible_mask")
	if err != nil {
		w.Fail(err)
		return 0
	}
	if cpu >= maxCPUs || w.Word(possible+mem.Virt(cpu/64*8))>>(cpu%64)&1 == 0 {
		w.Failf("CPU %d: the machine cannot have it", cpu)
		return 0
	}
	return w.Pointer(table + mem.Virt(cpu*8))
}
