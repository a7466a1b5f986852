"""qmpalloc: share one host's memory among raw QEMU guests so that their page caches save the most disk reads."""
