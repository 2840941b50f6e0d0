package fs

// InService is how many requests of the request queue are in service, abandoned ones included.
func (d *Device) InService() int { return len(d.requestSlots) }
