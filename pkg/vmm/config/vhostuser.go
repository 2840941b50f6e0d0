package config

import "strings"

// other begins what is wanted of a field that a socket excludes.
const other = "it left out with socket: "

// validatePlace wants a file or a socket, and with a socket nothing that is the back-end's business. at names the drive.
func (d *Drive) validatePlace(at string) error {
	switch {
	case d.Socket == "":
		return checkPath(at+"path_on_host", d.PathOnHost, maxPath)
	case d.PathOnHost != "":
		return BadString(at+"path_on_host", d.PathOnHost, other+"a drive has one or the other")
	case d.IsReadOnly:
		return bad(at+"is_read_only", true, other+"the back-end says whether the drive can be written to")
	case d.IOEngine != "":
		return BadString(at+"io_engine", d.IOEngine, other+"the back-end does the input and output")
	case d.RateLimiter != nil:
		return bad(at+"rate_limiter", "there", other+"the VMM sees no requests that it could limit")
	}
	return checkSocket(at+"socket", d.Socket)
}

// validatePlace wants a folder or a socket. at names the file system.
func (f *Filesystem) validatePlace(at string) error {
	switch {
	case f.Socket == "":
		return checkPath(at+"path_on_host", f.PathOnHost, maxPath)
	case f.PathOnHost != "":
		return BadString(at+"path_on_host", f.PathOnHost, other+"a file system has one or the other")
	case f.IsReadOnly:
		return bad(at+"is_read_only", true, other+"the back-end says what can be written to")
	}
	return checkSocket(at+"socket", f.Socket)
}

// checkSocket checks the form of the path of a socket to connect to.
func checkSocket(field, path string) error {
	// Go takes a leading @ for an abstract name, which anybody on the host may be behind.
	if strings.HasPrefix(path, "@") {
		return BadString(field, path, "a path that does not begin with @")
	}
	return checkPath(field, path, MaxSocketPath)
}

// CheckFor wants the update to be one that d can have: a drive that another process serves can be told to ask it again for its size, and
// nothing else.
func (u *DriveUpdate) CheckFor(d *Drive) error {
	if d.Socket == "" {
		return nil
	}
	at := "drives/" + d.DriveID + "/"
	const why = "it left out, as the drive has a socket: its back-end is asked for its size again"
	switch {
	case u.PathOnHost != "":
		return BadString(at+"path_on_host", u.PathOnHost, why)
	case u.RateLimiter != nil:
		return bad(at+"rate_limiter", "there", why)
	}
	return nil
}
