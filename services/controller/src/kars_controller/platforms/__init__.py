"""Where plans become running pods: one package a platform, all behind `base.Platform`."""
