"""Start QEMU guests: argv, launcher, accelerator probe, image cache."""
