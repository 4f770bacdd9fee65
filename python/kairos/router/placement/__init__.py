"""Which pair of workers a request goes to, and what each has to do: pure."""
