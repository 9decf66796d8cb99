"""The engine that plays the effects a process yields: SimPy, exact integer time, CPUs with preemption."""
