"""One object written once, read, waited for: alone, in groups and behind parents."""
