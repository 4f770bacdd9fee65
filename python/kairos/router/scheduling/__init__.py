"""What the router decides: who goes next, to which pair, and when. No input or output in here;
time is an argument, monotonic seconds."""
