package shim

// vmName names a VM among those of all namespaces, as a part of files' names. Neither namespaces nor ids can have an @ (containerd's
// package identifiers): no two VMs have the same name, while with a dash "a-b" and "c" would be "a" and "b-c", too.
func vmName(namespace, id string) string { return namespace + "@" + id }
