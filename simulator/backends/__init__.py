"""Where nodes live: containers, process groups, or memory; `base` says what each can do."""
