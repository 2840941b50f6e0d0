package metrics

// Process is what a VMM process counts outside of its machine. Firecracker has one of each, too.
type Process struct {
	APIServer     APIServer
	DeprecatedAPI DeprecatedAPI
	Get           GetRequests
	Put           PutRequests
	Patch         PatchRequests
	Latencies     Latencies
	Logger        Logger
	Seccomp       Seccomp
	Signals       Signals
	VMM           VMM
}

// APIServer is about the process's start, in microseconds; 0 unless whoever started it has told when that was.
type APIServer struct {
	ProcessStartupTime    Gauge `json:"process_startup_time_us"`
	ProcessStartupTimeCPU Gauge `json:"process_startup_time_cpu_us"`
}

// DeprecatedAPI counts the use of what Firecracker has deprecated.
type DeprecatedAPI struct {
	HTTPCalls Counter `json:"deprecated_http_api_calls"`
}

// GetRequests counts GET requests.
type GetRequests struct {
	InstanceInfo  Counter `json:"instance_info_count"`
	MachineCfg    Counter `json:"machine_cfg_count"`
	MMDS          Counter `json:"mmds_count"`
	VMMVersion    Counter `json:"vmm_version_count"`
	HotplugMemory Counter `json:"hotplug_memory_count"`
}

// PutRequests counts PUT requests, and those of them that were refused.
type PutRequests struct {
	Actions            Counter `json:"actions_count"`
	ActionsFails       Counter `json:"actions_fails"`
	BootSource         Counter `json:"boot_source_count"`
	BootSourceFails    Counter `json:"boot_source_fails"`
	Drive              Counter `json:"drive_count"`
	DriveFails         Counter `json:"drive_fails"`
	Logger             Counter `json:"logger_count"`
	LoggerFails        Counter `json:"logger_fails"`
	MachineCfg         Counter `json:"machine_cfg_count"`
	MachineCfgFails    Counter `json:"machine_cfg_fails"`
	CPUCfg             Counter `json:"cpu_cfg_count"`
	CPUCfgFails        Counter `json:"cpu_cfg_fails"`
	Metrics            Counter `json:"metrics_count"`
	MetricsFails       Counter `json:"metrics_fails"`
	Network            Counter `json:"network_count"`
	NetworkFails       Counter `json:"network_fails"`
	MMDS               Counter `json:"mmds_count"`
	MMDSFails          Counter `json:"mmds_fails"`
	Vsock              Counter `json:"vsock_count"`
	VsockFails         Counter `json:"vsock_fails"`
	Pmem               Counter `json:"pmem_count"`
	PmemFails          Counter `json:"pmem_fails"`
	Serial             Counter `json:"serial_count"`
	SerialFails        Counter `json:"serial_fails"`
	HotplugMemory      Counter `json:"hotplug_memory_count"`
	HotplugMemoryFails Counter `json:"hotplug_memory_fails"`
}

// PatchRequests counts PATCH requests, and those of them that were refused.
type PatchRequests struct {
	Drive              Counter `json:"drive_count"`
	DriveFails         Counter `json:"drive_fails"`
	Network            Counter `json:"network_count"`
	NetworkFails       Counter `json:"network_fails"`
	MachineCfg         Counter `json:"machine_cfg_count"`
	MachineCfgFails    Counter `json:"machine_cfg_fails"`
	MMDS               Counter `json:"mmds_count"`
	MMDSFails          Counter `json:"mmds_fails"`
	HotplugMemory      Counter `json:"hotplug_memory_count"`
	HotplugMemoryFails Counter `json:"hotplug_memory_fails"`
	Pmem               Counter `json:"pmem_count"`
	PmemFails          Counter `json:"pmem_fails"`
}

// Latencies are how long the last request of a kind took, in microseconds: as its client sees it, and without the API.
type Latencies struct {
	FullCreateSnapshot    Gauge `json:"full_create_snapshot"`
	DiffCreateSnapshot    Gauge `json:"diff_create_snapshot"`
	LoadSnapshot          Gauge `json:"load_snapshot"`
	PauseVM               Gauge `json:"pause_vm"`
	ResumeVM              Gauge `json:"resume_vm"`
	VMMFullCreateSnapshot Gauge `json:"vmm_full_create_snapshot"`
	VMMDiffCreateSnapshot Gauge `json:"vmm_diff_create_snapshot"`
	VMMLoadSnapshot       Gauge `json:"vmm_load_snapshot"`
	VMMPauseVM            Gauge `json:"vmm_pause_vm"`
	VMMResumeVM           Gauge `json:"vmm_resume_vm"`
}

// Logger is about log and metrics themselves: lines that nobody took.
type Logger struct {
	MissedMetrics  Counter `json:"missed_metrics_count"`
	MetricsFails   Counter `json:"metrics_fails"`
	MissedLog      Counter `json:"missed_log_count"`
	RateLimitedLog Counter `json:"rate_limited_log_count"`
}

// Seccomp has the system calls that were caught.
type Seccomp struct {
	NumFaults Gauge `json:"num_faults"`
}

// Signals has the signals that were caught.
type Signals struct {
	SIGBUS  Gauge   `json:"sigbus"`
	SIGSEGV Gauge   `json:"sigsegv"`
	SIGXFSZ Gauge   `json:"sigxfsz"`
	SIGXCPU Gauge   `json:"sigxcpu"`
	SIGPIPE Counter `json:"sigpipe"`
	SIGHUP  Gauge   `json:"sighup"`
	SIGILL  Gauge   `json:"sigill"`
}

// VMM is about the program.
type VMM struct {
	Panics Gauge `json:"panic_count"`
}
