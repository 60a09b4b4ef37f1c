"""System-call filters: named profiles, compiled to classic BPF here, with no libseccomp."""
