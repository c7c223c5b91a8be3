"""What an operator runs: doctor, inventory, init, policy, bench."""
