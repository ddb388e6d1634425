"""Sweeps: many trainings from one command line, `python -m fashion_cnn.train -m model=tiny,small seed=0,1,2`."""
