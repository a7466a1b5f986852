"""Running experiments on real guests: boots them, gives them their loads, controls them, and keeps what happened."""
