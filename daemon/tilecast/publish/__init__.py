"""From stores to viewers: notifications of what has changed, and answers to what is asked."""
