"""`lorawise check` beside peft-doctor on one corpus."""
