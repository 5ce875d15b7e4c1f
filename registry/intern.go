package registry

import "unique"

// intern gives the one copy of a string that many records share.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

// trim shares what instances of a fleet have in common and drops what is
// empty, so that an instance costs little more than its bytes.
func (s *InstanceSpec) trim() {
	s.Version, s.Zone = intern(s.Version), intern(s.Zone)
	for i, t := range s.Tags {
		s.Tags[i] = intern(t)
	}
	if len(s.Tags) == 0 {
		s.Tags = nil
	}
	if len(s.Metadata) == 0 {
		s.Metadata = nil
	}
	if len(s.Checks) == 0 {
		s.Checks = nil
	}
}

// trim shares the few methods there are and drops what is empty.
func (s *VersionSpec) trim() {
	for i := range s.Routes {
		s.Routes[i].Method = intern(s.Routes[i].Method)
	}
	s.Format, s.Lifecycle, s.ContentType = intern(s.Format), intern(s.Lifecycle), intern(s.ContentType)
	if len(s.Routes) == 0 {
		s.Routes = nil
	}
	if len(s.Findings) == 0 {
		s.Findings = nil
	}
}
