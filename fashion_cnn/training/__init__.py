"""What stands round Lightning's Trainer: exact repetition and resuming, records, hardware, the screen."""
