"""One run on several processes or machines, under ``torchrun``.

launch.py    what torchrun tells a process
world.py     the processes of a run and what they exchange: one process is the plain case
tables.py    embedding tables of which every process holds a part of the rows
exchange.py  TorchRec's engine that brings rows to whoever looks them up
plan.py      what a run would take on W devices, without training
"""
