"""Studies that train many small networks and vary one thing: root causes of CTL, and Theorem 5.1."""
