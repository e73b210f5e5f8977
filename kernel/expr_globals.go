package kernel

// globalTypes are the types of well-known variables, which BTF does not tell. They
// are part of the kernel's sources under the names given and have had these types
// in all kernels from 5.10 on; a kernel that lacks the type makes them an error.
var globalTypes = map[string]string{
	"init_task":      "struct task_struct",      // init/init_task.c
	"init_mm":        "struct mm_struct",        // mm/init-mm.c
	"init_cred":      "struct cred",             // kernel/cred.c
	"init_nsproxy":   "struct nsproxy",          // kernel/nsproxy.c
	"init_pid_ns":    "struct pid_namespace",    // kernel/pid.c
	"init_user_ns":   "struct user_namespace",   // kernel/user.c
	"init_uts_ns":    "struct uts_namespace",    // init/version.c
	"init_ipc_ns":    "struct ipc_namespace",    // ipc/msgutil.c
	"init_cgroup_ns": "struct cgroup_namespace", // kernel/cgroup/cgroup.c
	"init_net":       "struct net",              // net/core/net_namespace.c
	"init_fs":        "struct fs_struct",        // fs/fs_struct.c
	"init_files":     "struct files_struct",     // fs/file.c
	"init_signals":   "struct signal_struct",    // init/init_task.c
	"init_sighand":   "struct sighand_struct",   // init/init_task.c
	"cgrp_dfl_root":  "struct cgroup_root",      // kernel/cgroup/cgroup.c
	"boot_cpu_data":  "struct cpuinfo_x86",      // arch/x86/kernel/setup.c
	"iomem_resource": "struct resource",         // kernel/resource.c

	"modules":            "struct list_head", // kernel/module/main.c
	"super_blocks":       "struct list_head", // fs/super.c
	"net_namespace_list": "struct list_head", // net/core/net_namespace.c

	"jiffies":            "unsigned long", // kernel/time/timer.c
	"jiffies_64":         "u64",
	"nr_cpu_ids":         "unsigned int",  // kernel/smp.c
	"nr_threads":         "int",           // kernel/fork.c
	"total_forks":        "unsigned long", // kernel/fork.c
	"panic_timeout":      "int",           // kernel/panic.c
	"saved_command_line": "char *",        // init/main.c
	"vmemmap_base":       "unsigned long", // arch/x86/kernel/head64.c
	"page_offset_base":   "unsigned long", // arch/x86/kernel/head64.c
	"vmalloc_base":       "unsigned long", // arch/x86/kernel/head64.c
	"phys_base":          "unsigned long", // arch/x86/kernel/head_64.S

	// Per-CPU ones, which the BTF of 5.10 does not tell either.
	"runqueues":      "struct rq",               // kernel/sched/core.c
	"current_task":   "struct task_struct *",    // arch/x86/kernel/cpu/common.c
	"cpu_info":       "struct cpuinfo_x86",      // arch/x86/kernel/smpboot.c
	"cpu_tss_rw":     "struct tss_struct",       // arch/x86/kernel/process.c
	"cpu_tlbstate":   "struct tlb_state",        // arch/x86/mm/init.c
	"hrtimer_bases":  "struct hrtimer_cpu_base", // kernel/time/hrtimer.c
	"softnet_data":   "struct softnet_data",     // net/core/dev.c
	"process_counts": "unsigned long",           // kernel/fork.c
}
