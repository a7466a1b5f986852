"""Talk to QEMU and to the guest agent: trio over qemu.qmp's messages, models and errors."""
