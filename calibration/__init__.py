"""Routines that estimate slow constants before a run, each with a unit and an uncertainty.

Per-frame estimation belongs to ``radio``; smoothing during a run belongs to ``testbed``.
"""
