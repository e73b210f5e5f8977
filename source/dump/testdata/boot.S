/* A boot sector that puts an x86-64 machine into a known state: long mode,
   page tables at 0x10000 (physical 0 also at 0xffffffff80000000), known IDT and GS bases. It writes U to the first serial port and halts.
   as --64 -o boot.o boot.S && ld -Ttext 0x7c00 --oformat binary -o boot.bin boot.o */
	.code16
	.globl _start
_start:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %ss
	movw $0x7c00, %sp
	inb $0x92, %al
	orb $2, %al
	andb $0xfe, %al
	outb %al, $0x92
	lgdtl gdtr
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	ljmpl $8, $prot
	.code32
prot:
	movw $16, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	/* page tables at 0x10000: PML4, 0x11000 PDPT low, 0x12000 PDPT high, 0x13000 PD with 2 MiB pages */
	movl $0x10000, %edi
	xorl %eax, %eax
	movl $0x1000, %ecx
	cld
	rep stosl
	movl $0x11003, 0x10000
	movl $0x12003, 0x10000+511*8
	movl $0x13003, 0x11000
	movl $0x13003, 0x12000+510*8
	movl $0x13000, %edi
	movl $0x83, %eax
	movl $16, %ecx
1:	movl %eax, (%edi)
	addl $0x200000, %eax
	addl $8, %edi
	loop 1b
	movl %cr4, %eax
	orl $0x20, %eax
	movl %eax, %cr4
	movl $0x10000, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl %cr0, %eax
	orl $0x80000000, %eax
	movl %eax, %cr0
	ljmpl $24, $long
	.code64
long:
	movabsq $high+0xffffffff80000000, %rax
	jmpq *%rax
high:
	lidt idtr
	movl $0xc0000101, %ecx
	movl $0x12345000, %eax
	movl $0xffff8880, %edx
	wrmsr
	movl $0xc0000102, %ecx
	movl $0x00abc000, %eax
	movl $0x00007f00, %edx
	wrmsr
	movabsq $0xffffffff80007c00, %rsp
	/* COM1: one byte says that the machine is where it should be */
	movw $0x3f8, %dx
	movb $'U', %al
	outb %al, %dx
2:	hlt
	jmp 2b
	.balign 8
gdt:	.quad 0
	.quad 0x00cf9a000000ffff
	.quad 0x00cf92000000ffff
	.quad 0x00af9a000000ffff
gdtr:	.word 31
	.long gdt
idtr:	.word 0xfff
	.quad 0xfffffe0000000000
	.org 510
	.word 0xaa55
