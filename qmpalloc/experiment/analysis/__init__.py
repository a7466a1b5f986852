"""From what runs left to what it says: trials, results, statistics, metrics, curves that were learnt. Pure."""
