"""What learns: the plugins shipped here, the loop that runs any of them, and their contract."""
