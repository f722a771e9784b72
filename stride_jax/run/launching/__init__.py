"""Jobs that run a config here or on a cluster: settings, templates, sweeps, restarts."""
