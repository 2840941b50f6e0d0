package hostile

import (
	"encoding/binary"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/boot"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// kind is what an op does. The order is that of the program's table.
type kind uint32

const (
	opEnd       kind = iota
	opWrite8         // at addr: lo
	opWrite16        //
	opWrite32        //
	opWrite64        // lo and hi
	opRead8          // at addr, into lo
	opRead16         //
	opRead32         //
	opRead64         // into lo and hi
	opXor            // at addr, by lo: a read and a write
	opOut8           // to port addr: lo
	opOut16          //
	opOut32          //
	opIn8            // from port addr, to nowhere
	opIn16           //
	opIn32           //
	opOutString      // to port addr: the hi bytes of the script that follow
	opInString       // from port addr, to RAM at lo: hi bytes
	opBurst          // at addr, hi times: lo
	opFill           // at addr and behind, hi times: lo
	opCopy           // to addr, from lo: hi bytes
	opDelay          // lo rounds of nothing
	kinds
)

// op is an instruction of a script, as it lies in guest RAM.
type op struct {
	kind         kind
	addr, lo, hi uint32
}

const opSize = 16

// code of each kind. edi is addr, eax lo, edx hi; esi is behind the op. It may change all of them but esi, and ebx and ecx.
var code = [kinds][]byte{
	opWrite8:    {0x88, 0x07},                                                 // mov [edi], al
	opWrite16:   {0x66, 0x89, 0x07},                                           // mov [edi], ax
	opWrite32:   {0x89, 0x07},                                                 // mov [edi], eax
	opWrite64:   {0x0f, 0x6f, 0x46, 0xf8, 0x0f, 0x7f, 0x07},                   // movq mm0, [esi-8]; movq [edi], mm0
	opRead8:     {0x8a, 0x07, 0x88, 0x46, 0xf8},                               // mov al, [edi]; mov [esi-8], al
	opRead16:    {0x66, 0x8b, 0x07, 0x66, 0x89, 0x46, 0xf8},                   // mov ax, [edi]; mov [esi-8], ax
	opRead32:    {0x8b, 0x07, 0x89, 0x46, 0xf8},                               // mov eax, [edi]; mov [esi-8], eax
	opRead64:    {0x0f, 0x6f, 0x07, 0x0f, 0x7f, 0x46, 0xf8},                   // movq mm0, [edi]; movq [esi-8], mm0
	opXor:       {0x31, 0x07},                                                 // xor [edi], eax
	opOut8:      {0x89, 0xfa, 0xee},                                           // mov edx, edi; out dx, al
	opOut16:     {0x89, 0xfa, 0x66, 0xef},                                     // mov edx, edi; out dx, ax
	opOut32:     {0x89, 0xfa, 0xef},                                           // mov edx, edi; out dx, eax
	opIn8:       {0x89, 0xfa, 0xec},                                           // mov edx, edi; in al, dx
	opIn16:      {0x89, 0xfa, 0x66, 0xed},                                     // mov edx, edi; in ax, dx
	opIn32:      {0x89, 0xfa, 0xed},                                           // mov edx, edi; in eax, dx
	opOutString: {0x89, 0xf3, 0x89, 0xd1, 0x89, 0xfa, 0xf3, 0x6e, 0x89, 0xde}, // mov ebx, esi; mov ecx, edx; mov edx, edi; rep outsb; mov esi, ebx
	opInString:  {0x89, 0xd1, 0x89, 0xfa, 0x89, 0xc7, 0xf3, 0x6c},             // mov ecx, edx; mov edx, edi; mov edi, eax; rep insb
	opBurst:     {0x89, 0xd1, 0x89, 0x07, 0xe2, 0xfc},                         // mov ecx, edx; mov [edi], eax; loop -4
	opFill:      {0x89, 0xd1, 0xf3, 0xab},                                     // mov ecx, edx; rep stosd
	opCopy:      {0x89, 0xf3, 0x89, 0xc6, 0x89, 0xd1, 0xf3, 0xa4, 0x89, 0xde}, // mov ebx, esi; mov esi, eax; mov ecx, edx; rep movsb; mov esi, ebx
	opDelay:     {0x89, 0xc1, 0xf3, 0x90, 0xe2, 0xfc},                         // mov ecx, eax; pause; loop -4
}

// Kernel is the guest: a kernel that copies its program to where it stays, and starts the second vCPU.
func Kernel() []byte {
	p := program()
	const copyLen = 24
	k := &assembler{base: vmmtest.KernelAddr}
	k.emit(0xbe).word(vmmtest.KernelAddr + copyLen) // mov esi, program
	k.emit(0xbf).word(programAddr)                  // mov edi, programAddr
	k.emit(0xb9).word(uint32(len(p)))               // mov ecx, length
	k.emit(0xf3, 0xa4, 0xb8).word(programAddr)      // rep movsb; mov eax, programAddr
	k.emit(0xff, 0xe0)                              // jmp eax
	if len(k.b) != copyLen {
		panic("hostile: the code that copies the program is not as long as it believes")
	}
	return vmmtest.ELF(append(k.b, p...))
}

// program is what stays, at programAddr.
func program() []byte {
	a := &assembler{base: programAddr, labels: make(map[string]int)}
	boots := trampoline()
	// The first vCPU wakes the second (Intel SDM 3A §9.4.4).
	a.emit(0xbe).ref("trampoline")                                            // mov esi, trampoline
	a.emit(0xbf).word(trampolineAddr)                                         // mov edi, trampolineAddr
	a.emit(0xb9).word(uint32(len(boots))).emit(0xf3, 0xa4)                    // mov ecx, length; rep movsb
	a.store(lapicAddr+0xf0, 0x1ff)                                            // spurious vector: software enable
	a.store(lapicAddr+0x310, 1<<24)                                           // ICR, upper half: APIC 1
	a.store(lapicAddr+0x300, 0x4500)                                          // INIT
	a.emit(0xb9).word(2000).emit(0xf3, 0x90, 0xe2, 0xfc)                      // mov ecx, 2000; pause; loop -4
	a.store(lapicAddr+0x300, 0x4600|trampolineAddr>>12)                       // start-up
	a.emit(0xb9).word(2000).emit(0xf3, 0x90, 0xe2, 0xfc)                      //
	a.store(lapicAddr+0x300, 0x4600|trampolineAddr>>12)                       // once more, for a CPU that missed it
	a.emit(0xbd).word(controlAddr).jump("wait")                               // mov ebp, control block
	a.label("second")                                                         //
	a.emit(0x66, 0xb8, boot.SelectorData, 0)                                  // mov ax, data
	a.emit(0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0)                                // mov ds, ax; mov es, ax; mov ss, ax
	a.emit(0xbd).word(controlAddr + controlSize)                              // mov ebp, control block
	a.label("wait").emit(0x8b, 0x45, controlGo, 0x3b, 0x45, controlDone)      // mov eax, [ebp+go]; cmp eax, [ebp+done]
	a.emit(0x75, 4, 0xf3, 0x90, 0xeb, 0xf4)                                   // jne run; pause; jmp wait
	a.emit(0x8b, 0x75, controlAt)                                             // run: mov esi, [ebp+at]
	a.label("next").emit(0x8b, 0x1e, 0x8b, 0x7e, 4, 0x8b, 0x46, 8)            // mov ebx, [esi]; mov edi, [esi+4]; mov eax, [esi+8]
	a.emit(0x8b, 0x56, 12, 0x83, 0xc6, opSize, 0xff, 0x24, 0x9d).ref("table") // mov edx, [esi+12]; add esi, 16; jmp [table+4*ebx]
	handlers := make([]int, kinds)
	for k := range kinds {
		handlers[k] = len(a.b)
		if k == opEnd {
			a.emit(0x8b, 0x45, controlGo, 0x89, 0x45, controlDone).jump("wait") // mov eax, [ebp+go]; mov [ebp+done], eax
			continue
		}
		a.emit(code[k]...).jump("next")
	}
	a.label("table")
	for _, h := range handlers {
		a.word(programAddr + uint32(h))
	}
	a.label("trampoline").emit(boots...)
	a.link()
	// The second vCPU's entry, which the trampoline's last instruction names.
	at := a.labels["trampoline"] + len(boots) - 6
	binary.LittleEndian.PutUint32(a.b[at:], programAddr+uint32(a.labels["second"]))
	return a.b
}

// trampoline takes a vCPU from real mode to the program, by the table of segments that the first one has.
func trampoline() []byte {
	const pointer = 24 // of the pointer below, from trampolineAddr
	b := []byte{
		0xfa,       // cli
		0x8c, 0xc8, // mov ax, cs
		0x8e, 0xd8, // mov ds, ax
		0x66, 0x0f, 0x01, 0x16, pointer, 0, // lgdt [pointer]
		0x66, 0xb8, 0x11, 0, 0, 0, // mov eax, PE|ET
		0x0f, 0x22, 0xc0, // mov cr0, eax
		0xeb, 0x08, // jmp over the pointer
		0, 0, // padding
		boot.GDTLimit, 0, byte(boot.GDTAddr & 0xff), byte(boot.GDTAddr >> 8), 0, 0, // pointer
		0x66, 0xea, 0, 0, 0, 0, boot.SelectorCode, 0, // jmp code:second
	}
	return b
}

// assembler puts machine code together.
type assembler struct {
	base   uint32
	b      []byte
	labels map[string]int
	rel    []fixup // four bytes that lead to a label from behind themselves
	abs    []fixup // four bytes that are a label's address
}

type fixup struct {
	at    int
	label string
}

func (a *assembler) emit(p ...byte) *assembler {
	a.b = append(a.b, p...)
	return a
}

func (a *assembler) word(v uint32) *assembler {
	a.b = binary.LittleEndian.AppendUint32(a.b, v)
	return a
}

func (a *assembler) label(name string) *assembler {
	a.labels[name] = len(a.b)
	return a
}

func (a *assembler) ref(name string) {
	a.abs = append(a.abs, fixup{len(a.b), name})
	a.word(0)
}

func (a *assembler) jump(name string) {
	a.emit(0xe9)
	a.rel = append(a.rel, fixup{len(a.b), name})
	a.word(0)
}

// store is mov dword [addr], v.
func (a *assembler) store(addr, v uint32) { a.emit(0xc7, 0x05).word(addr).word(v) }

func (a *assembler) link() {
	for _, f := range a.rel {
		binary.LittleEndian.PutUint32(a.b[f.at:], uint32(a.labels[f.label]-f.at-4))
	}
	for _, f := range a.abs {
		binary.LittleEndian.PutUint32(a.b[f.at:], a.base+uint32(a.labels[f.label]))
	}
}
