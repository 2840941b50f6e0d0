package metrics

// Block counts what a drive does.
type Block struct {
	ActivateFails           Counter `json:"activate_fails"`
	CfgFails                Counter `json:"cfg_fails"`
	NoAvailBuffer           Counter `json:"no_avail_buffer"` // notifications without a request
	EventFails              Counter `json:"event_fails"`
	ExecuteFails            Counter `json:"execute_fails"`
	InvalidReqs             Counter `json:"invalid_reqs_count"`
	Flush                   Counter `json:"flush_count"`
	QueueEvents             Counter `json:"queue_event_count"`
	RateLimiterEvents       Counter `json:"rate_limiter_event_count"`
	Update                  Counter `json:"update_count"`
	UpdateFails             Counter `json:"update_fails"`
	ReadBytes               Counter `json:"read_bytes"`
	WriteBytes              Counter `json:"write_bytes"`
	Reads                   Counter `json:"read_count"`
	Writes                  Counter `json:"write_count"`
	ReadAgg                 Latency `json:"read_agg"`
	WriteAgg                Latency `json:"write_agg"`
	RateLimiterThrottled    Counter `json:"rate_limiter_throttled_events"`
	IOEngineThrottledEvents Counter `json:"io_engine_throttled_events"`
	RemainingReqs           Counter `json:"remaining_reqs_count"`
}

// Net counts what a network interface does; rx is the way to the guest. Bytes are those of the frames, without virtio's header.
type Net struct {
	ActivateFails          Counter `json:"activate_fails"`
	CfgFails               Counter `json:"cfg_fails"`
	NoRxAvailBuffer        Counter `json:"no_rx_avail_buffer"`
	NoTxAvailBuffer        Counter `json:"no_tx_avail_buffer"`
	EventFails             Counter `json:"event_fails"`
	RxQueueEvents          Counter `json:"rx_queue_event_count"`
	RxRateLimiterEvents    Counter `json:"rx_event_rate_limiter_count"`
	RxRateLimiterThrottled Counter `json:"rx_rate_limiter_throttled"`
	RxTAPEvents            Counter `json:"rx_tap_event_count"`
	RxBytes                Counter `json:"rx_bytes_count"`
	RxPackets              Counter `json:"rx_packets_count"`
	RxFails                Counter `json:"rx_fails"`
	Rx                     Counter `json:"rx_count"`
	TAPReadFails           Counter `json:"tap_read_fails"`
	TAPWriteFails          Counter `json:"tap_write_fails"`
	TAPWriteAgg            Latency `json:"tap_write_agg"`
	TxBytes                Counter `json:"tx_bytes_count"`
	TxMalformedFrames      Counter `json:"tx_malformed_frames"`
	TxFails                Counter `json:"tx_fails"`
	Tx                     Counter `json:"tx_count"`
	TxPackets              Counter `json:"tx_packets_count"`
	TxQueueEvents          Counter `json:"tx_queue_event_count"`
	TxRateLimiterEvents    Counter `json:"tx_rate_limiter_event_count"`
	TxRateLimiterThrottled Counter `json:"tx_rate_limiter_throttled"`
	TxSpoofedMAC           Counter `json:"tx_spoofed_mac_count"`
	TxRemainingReqs        Counter `json:"tx_remaining_reqs_count"`
}

// Vsock counts what a socket device does; rx is the way to the guest. Bytes are those of the connections.
type Vsock struct {
	ActivateFails      Counter `json:"activate_fails"`
	CfgFails           Counter `json:"cfg_fails"`
	RxQueueEventFails  Counter `json:"rx_queue_event_fails"`
	TxQueueEventFails  Counter `json:"tx_queue_event_fails"`
	EvQueueEventFails  Counter `json:"ev_queue_event_fails"`
	MuxerEventFails    Counter `json:"muxer_event_fails"`
	ConnEventFails     Counter `json:"conn_event_fails"`
	RxQueueEvents      Counter `json:"rx_queue_event_count"`
	TxQueueEvents      Counter `json:"tx_queue_event_count"`
	RxBytes            Counter `json:"rx_bytes_count"`
	TxBytes            Counter `json:"tx_bytes_count"`
	RxPackets          Counter `json:"rx_packets_count"`
	TxPackets          Counter `json:"tx_packets_count"`
	ConnectionsAdded   Counter `json:"conns_added"`
	ConnectionsKilled  Counter `json:"conns_killed"`
	ConnectionsRemoved Counter `json:"conns_removed"`
	KillQueueResync    Counter `json:"killq_resync"`
	TxFlushFails       Counter `json:"tx_flush_fails"`
	TxWriteFails       Counter `json:"tx_write_fails"`
	RxReadFails        Counter `json:"rx_read_fails"`
}

// Entropy counts what the entropy device does.
type Entropy struct {
	ActivateFails        Counter `json:"activate_fails"`
	EventFails           Counter `json:"entropy_event_fails"`
	Events               Counter `json:"entropy_event_count"` // requests
	Bytes                Counter `json:"entropy_bytes"`
	HostRNGFails         Counter `json:"host_rng_fails"`
	RateLimiterThrottled Counter `json:"entropy_rate_limiter_throttled"`
	RateLimiterEvents    Counter `json:"rate_limiter_event_count"`
}

// Balloon counts what the balloon does.
type Balloon struct {
	ActivateFails        Counter `json:"activate_fails"`
	Inflate              Counter `json:"inflate_count"`
	StatsUpdates         Counter `json:"stats_updates_count"`
	StatsUpdateFails     Counter `json:"stats_update_fails"`
	Deflate              Counter `json:"deflate_count"`
	EventFails           Counter `json:"event_fails"`
	FreePageReports      Counter `json:"free_page_report_count"`
	FreePageReportFreed  Counter `json:"free_page_report_freed"` // bytes
	FreePageReportFails  Counter `json:"free_page_report_fails"`
	FreePageHints        Counter `json:"free_page_hint_count"`
	FreePageHintingFreed Counter `json:"free_page_hint_freed"` // bytes
	FreePageHintFails    Counter `json:"free_page_hint_fails"`
}

// MMDS counts what the metadata service does, on all interfaces; rx is from the guest here.
type MMDS struct {
	RxAccepted           Counter `json:"rx_accepted"`         // frames that the TAP never saw
	RxAcceptedErr        Counter `json:"rx_accepted_err"`     // of them, those that are broken, too large, or for another port
	RxAcceptedUnusual    Counter `json:"rx_accepted_unusual"` // what is no TCP, and segments out of order
	RxBadEth             Counter `json:"rx_bad_eth"`          // frames that the guest has changed since they were accepted
	RxInvalidToken       Counter `json:"rx_invalid_token"`    // GETs
	RxNoToken            Counter `json:"rx_no_token"`         // GETs
	Rx                   Counter `json:"rx_count"`            // segments to the service's port
	TxBytes              Counter `json:"tx_bytes"`            // of frames, without virtio's header
	Tx                   Counter `json:"tx_count"`            // frames made
	TxErrors             Counter `json:"tx_errors"`           // connections given up, and answers there was no room for
	TxFrames             Counter `json:"tx_frames"`           // frames given to the interface
	ConnectionsCreated   Counter `json:"connections_created"`
	ConnectionsDestroyed Counter `json:"connections_destroyed"`
}

// Pmem is for a device that does not exist here yet.
type Pmem struct {
	ActivateFails        Counter `json:"activate_fails"`
	CfgFails             Counter `json:"cfg_fails"`
	EventFails           Counter `json:"event_fails"`
	QueueEvents          Counter `json:"queue_event_count"`
	RateLimiterThrottled Counter `json:"rate_limiter_throttled_events"`
	RateLimiterEvents    Counter `json:"rate_limiter_event_count"`
}

// MemoryHotplug is for a device that does not exist here yet.
type MemoryHotplug struct {
	ActivateFails      Counter `json:"activate_fails"`
	QueueEventFails    Counter `json:"queue_event_fails"`
	QueueEvents        Counter `json:"queue_event_count"`
	PlugAgg            Latency `json:"plug_agg"`
	Plug               Counter `json:"plug_count"`
	PlugBytes          Counter `json:"plug_bytes"`
	PlugFails          Counter `json:"plug_fails"`
	UnplugAgg          Latency `json:"unplug_agg"`
	Unplug             Counter `json:"unplug_count"`
	UnplugBytes        Counter `json:"unplug_bytes"`
	UnplugFails        Counter `json:"unplug_fails"`
	UnplugDiscardFails Counter `json:"unplug_discard_fails"`
	UnplugAllAgg       Latency `json:"unplug_all_agg"`
	UnplugAll          Counter `json:"unplug_all_count"`
	UnplugAllFails     Counter `json:"unplug_all_fails"`
	StateAgg           Latency `json:"state_agg"`
	State              Counter `json:"state_count"`
	StateFails         Counter `json:"state_fails"`
}

// Filesystem counts what a shared folder does, which Firecracker has not.
type Filesystem struct {
	ActivateFails Counter `json:"activate_fails"`
	EventFails    Counter `json:"event_fails"`
	Requests      Counter `json:"request_count"`
	InvalidReqs   Counter `json:"invalid_reqs_count"`
	RxBytes       Counter `json:"rx_bytes_count"` // to the guest: the answers, and what is read of files
	TxBytes       Counter `json:"tx_bytes_count"` // from the guest: the requests, and what is written to files
}

// VhostUser counts what a device does that another process serves: the requests are that one's to count. Times are in microseconds, each the
// last.
type VhostUser struct {
	ActivateFails    Counter `json:"activate_fails"`
	CfgFails         Counter `json:"cfg_fails"`
	InitTime         Gauge   `json:"init_time_us"`
	ActivateTime     Gauge   `json:"activate_time_us"`
	ConfigChangeTime Gauge   `json:"config_change_time_us"`
}

// UART counts the accesses to the serial port.
type UART struct {
	Errors                  Counter `json:"error_count"`
	Flush                   Counter `json:"flush_count"`
	MissedReads             Counter `json:"missed_read_count"`
	MissedWrites            Counter `json:"missed_write_count"` // bytes that whoever reads the output did not take in time
	Reads                   Counter `json:"read_count"`
	Writes                  Counter `json:"write_count"` // bytes
	RateLimiterDroppedBytes Counter `json:"rate_limiter_dropped_bytes"`
}

// I8042 counts the accesses to the keyboard controller.
type I8042 struct {
	Errors       Counter `json:"error_count"`
	MissedReads  Counter `json:"missed_read_count"`
	MissedWrites Counter `json:"missed_write_count"`
	Reads        Counter `json:"read_count"`
	Resets       Counter `json:"reset_count"`
	Writes       Counter `json:"write_count"`
}

// VCPU counts a vCPU's exits to the VMM.
type VCPU struct {
	ExitIOIn          Counter `json:"exit_io_in"`
	ExitIOOut         Counter `json:"exit_io_out"`
	ExitMMIORead      Counter `json:"exit_mmio_read"`
	ExitMMIOWrite     Counter `json:"exit_mmio_write"`
	Failures          Counter `json:"failures"`
	KVMClockCtrlFails Counter `json:"kvmclock_ctrl_fails"`
	ExitIOInAgg       Latency `json:"exit_io_in_agg"`
	ExitIOOutAgg      Latency `json:"exit_io_out_agg"`
	ExitMMIOReadAgg   Latency `json:"exit_mmio_read_agg"`
	ExitMMIOWriteAgg  Latency `json:"exit_mmio_write_agg"`
}

// Interrupts counts the virtio devices' interrupts.
type Interrupts struct {
	Triggers      Counter `json:"triggers"`
	ConfigUpdates Counter `json:"config_updates"`
}
