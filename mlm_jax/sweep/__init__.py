"""Trials that differ in what is studied, each with several seeds: what a sweep is, its folder, and running it."""
