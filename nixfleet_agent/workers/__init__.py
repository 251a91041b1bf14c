"""Workers: each does one kind of order and tells the reducer what came of it. None of them decides anything."""
