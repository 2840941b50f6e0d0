package cpu

import "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"

// What the named templates hide, by the names of Intel's SDM 2A and AMD's APM 3. T2, T2S, T2CL and T2A show what AWS' T2 instances
// have, C3 what its C3 instances have; with T2CL on Intel and T2A on AMD the instruction sets are the same.

// Leaf 1.
const (
	ecxDTES64, ecxMonitor, ecxDSCPL, ecxVMX, ecxSMX, ecxEIST, ecxTM2 = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
	ecxCNXTID, ecxSDBG, ecxFMA, ecxXTPR, ecxPDCM, ecxDCA, ecxMOVBE   = 1 << 10, 1 << 11, 1 << 12, 1 << 14, 1 << 15, 1 << 18, 1 << 22

	edxMCE, edxMTRR                                                  = 1 << 7, 1 << 12
	edxPSN, edxDS, edxACPI, edxSelfSnoop, edxTM, edxReserved, edxPBE = 1 << 18, 1 << 21, 1 << 22, 1 << 27, 1 << 29, 1 << 30, 1 << 31
)

// Leaf 7.
const (
	ebxSGX, ebxBMI1, ebxHLE, ebxAVX2, ebxBMI2, ebxERMS, ebxINVPCID = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 8, 1 << 9, 1 << 10
	ebxRTM, ebxRDTM, ebxMPX, ebxRDTA                               = 1 << 11, 1 << 12, 1 << 14, 1 << 15
	ebxRDSEED, ebxADX, ebxPCOMMIT, ebxCLFLUSHOPT, ebxCLWB, ebxPT   = 1 << 18, 1 << 19, 1 << 22, 1 << 23, 1 << 24, 1 << 25
	ebxSHA                                                         = 1 << 29
	// AVX512: F, DQ, IFMA, PF, ER, CD, BW, VL.
	ebxAVX512 = 1<<16 | 1<<17 | 1<<21 | 1<<26 | 1<<27 | 1<<28 | 1<<30 | 1<<31

	ecxUMIP, ecxPKU, ecxOSPKE, ecxGFNI, ecxVAES, ecxVPCLMULQDQ = 1 << 2, 1 << 3, 1 << 4, 1 << 8, 1 << 9, 1 << 10
	ecxLA57, ecxRDPID, ecxSGXLC                                = 1 << 16, 1 << 22, 1 << 30
	ecxAVX512VBMI, ecxAVX512VBMI2, ecxAVX512VNNI               = 1 << 1, 1 << 6, 1 << 11
	ecxAVX512BITALG, ecxAVX512VPOPCNTDQ                        = 1 << 12, 1 << 14

	edxAVX5124VNNIW, edxAVX5124FMAPS, edxFSRM, edxAVX512VP2INTERSECT = 1 << 2, 1 << 3, 1 << 4, 1 << 8
)

// Leaf 0xd.
const (
	// Components in the first subleaf: MPX, AVX-512, PKRU.
	xcr0Hidden = xcr0MPX | xcr0AVX512 | xcr0PKRU
	// XSAVEC, XGETBV with ecx 1 and XSAVES in the second.
	xsaveHidden = 1<<1 | 1<<2 | 1<<3
)

// Extended leaves.
const (
	extSVM, extLZCNT, extSSE4A, extMisalignSSE, extPrefetchW, extMONITORX = 1 << 2, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 29
	extMMXExt, extMMX, extFXSR, extFFXSR, extPage1GB                      = 1 << 22, 1 << 23, 1 << 24, 1 << 25, 1 << 26

	sizesCLZERO, sizesXSAVEErrPtr, sizesWBNOINVD            = 1 << 0, 1 << 2, 1 << 9
	sizesIBRSPreferred, sizesIBRSSameMode, sizesNoEFERLMSLE = 1 << 18, 1 << 19, 1 << 20
)

// IA32_ARCH_CAPABILITIES.
const (
	archRDCLNo, archIBRSAll, archRSBA, archSkipL1DFlush, archSSBNo, archMDSNo = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
	archPSChangeNo, archTSXCtrl, archTAANo                                    = 1 << 6, 1 << 7, 1 << 8
	archPackageCtls, archEnergyCtl                                            = 1 << 10, 1 << 11
	archSBDRSSDPNo, archFBSDPNo, archPSDPNo, archFBClear, archRRSBA           = 1 << 13, 1 << 14, 1 << 15, 1 << 17, 1 << 19
	archPBRSBNo, archGDSNo, archRFDSNo, archRFDSClear                         = 1 << 24, 1 << 26, 1 << 27, 1 << 28
)

// haswellEP and ivyBridgeEP are the signatures that the templates show, whatever the host's is.
const (
	haswellEP   = 0x306f2
	ivyBridgeEP = 0x306e4
)

// t2Changes are those of all templates whose name begins with T2, followed by a template's own.
func t2Changes(own ...change) []change {
	return append([]change{
		{1, 0, "eax", writableSignature &^ haswellEP, haswellEP},
		{1, 0, "ecx", ecxDTES64 | ecxMonitor | ecxDSCPL | ecxVMX | ecxSMX | ecxEIST | ecxTM2 | ecxCNXTID | ecxSDBG | ecxXTPR | ecxPDCM | ecxDCA, 0},
		{1, 0, "edx", edxPSN | edxDS | edxACPI | edxSelfSnoop | edxTM | edxReserved | edxPBE, edxMCE | edxMTRR},
		{7, 0, "ebx", ebxSGX | ebxHLE | ebxRTM | ebxRDTM | ebxMPX | ebxRDTA | ebxAVX512 | ebxRDSEED | ebxADX | ebxPCOMMIT | ebxCLFLUSHOPT |
			ebxCLWB | ebxPT | ebxSHA, ebxERMS},
		{7, 0, "ecx", ecxAVX512VBMI | ecxUMIP | ecxPKU | ecxOSPKE | ecxAVX512VBMI2 | ecxGFNI | ecxVAES | ecxVPCLMULQDQ | ecxAVX512VNNI |
			ecxAVX512BITALG | ecxAVX512VPOPCNTDQ | ecxLA57 | ecxRDPID | ecxSGXLC, 0},
		{7, 0, "edx", edxAVX5124VNNIW | edxAVX5124FMAPS | edxFSRM | edxAVX512VP2INTERSECT, 0},
		{0xd, 0, "eax", xcr0Hidden, 0},
		{0xd, 1, "eax", xsaveHidden, 0},
	}, own...)
}

// t2Extended are T2's and T2S' changes of extended leaves.
func t2Extended() []change {
	return []change{
		{0x80000001, 0, "ecx", extPrefetchW | extMONITORX, 0},
		{0x80000001, 0, "edx", extPage1GB, 0},
		{0x80000008, 0, "ebx", sizesWBNOINVD, 0},
	}
}

// namedTemplates lists them; the caller may keep and change what it gets.
func namedTemplates() map[string]named {
	return map[string]named{
		config.CPUTemplateT2: {vendor: vendorIntel, models: []model{skylake(), cascadeLake(), iceLake()}, cpuid: t2Changes(t2Extended()...)},
		config.CPUTemplateT2S: {vendor: vendorIntel, models: []model{skylake(), cascadeLake()}, cpuid: t2Changes(t2Extended()...),
			// The worse of the two CPUs' vulnerabilities; VERW clears the fill buffers of both with current microcode.
			archCapabilities: config.Bitmap[uint64]{Mask: ^uint64(0), Value: archRSBA | archSkipL1DFlush | archPSChangeNo | archPackageCtls | archEnergyCtl |
				archFBClear | archRRSBA | archGDSNo | archRFDSNo}},
		config.CPUTemplateT2CL: {vendor: vendorIntel, models: []model{cascadeLake(), iceLake()},
			cpuid: t2Changes(
				change{0x80000001, 0, "ecx", extSSE4A | extMisalignSSE | extPrefetchW | extMONITORX, 0},
				change{0x80000001, 0, "edx", extMMXExt | extMMX | extFXSR | extFFXSR | extPage1GB, 0},
				change{0x80000008, 0, "ebx", sizesWBNOINVD, 0}),
			archCapabilities: config.Bitmap[uint64]{Mask: ^uint64(archRDCLNo | archIBRSAll | archRSBA | archSkipL1DFlush | archSSBNo | archMDSNo | archPSChangeNo |
				archTSXCtrl | archTAANo | archSBDRSSDPNo | archFBSDPNo | archPSDPNo | archFBClear | archRRSBA | archPBRSBNo | archGDSNo | archRFDSNo | archRFDSClear)}},
		config.CPUTemplateT2A: {vendor: vendorAMD, models: []model{milan()},
			cpuid: t2Changes(
				change{0x80000001, 0, "ecx", extSVM | extSSE4A | extMisalignSSE | extPrefetchW | extMONITORX, 0},
				change{0x80000001, 0, "edx", extMMXExt | extFFXSR | extPage1GB, 0},
				change{0x80000008, 0, "ebx", sizesCLZERO | sizesWBNOINVD, sizesXSAVEErrPtr | sizesIBRSPreferred | sizesIBRSSameMode | sizesNoEFERLMSLE})},
		config.CPUTemplateC3: {vendor: vendorIntel, models: []model{skylake(), cascadeLake(), iceLake()},
			cpuid: []change{
				{1, 0, "eax", writableSignature &^ ivyBridgeEP, ivyBridgeEP},
				{1, 0, "ecx", ecxDTES64 | ecxMonitor | ecxDSCPL | ecxVMX | ecxTM2 | ecxCNXTID | ecxSDBG | ecxFMA | ecxXTPR | ecxPDCM | ecxMOVBE, 0},
				{1, 0, "edx", edxPSN | edxDS | edxACPI | edxSelfSnoop | edxTM | edxPBE, edxMCE | edxMTRR},
				{7, 0, "ebx", ebxSGX | ebxBMI1 | ebxHLE | ebxAVX2 | ebxBMI2 | ebxINVPCID | ebxRTM | ebxRDTM | ebxMPX | ebxRDTA | ebxAVX512 | ebxRDSEED |
					ebxADX | ebxCLFLUSHOPT | ebxCLWB | ebxPT | ebxSHA, 0},
				{7, 0, "ecx", ecxAVX512VBMI | ecxUMIP | ecxPKU | ecxOSPKE | ecxAVX512VNNI | ecxAVX512VPOPCNTDQ | ecxLA57 | ecxRDPID | ecxSGXLC, 0},
				{7, 0, "edx", edxAVX5124VNNIW | edxAVX5124FMAPS, 0},
				{0xd, 0, "eax", xcr0Hidden, 0},
				{0xd, 1, "eax", xsaveHidden, 0},
				{0x80000001, 0, "ecx", extLZCNT | extPrefetchW, 0},
				{0x80000001, 0, "edx", extPage1GB, 0},
			}},
	}
}
