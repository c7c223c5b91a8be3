"""How long things live: the terms, the bucket's lifecycle rules, and the sweep that deletes what has expired."""
