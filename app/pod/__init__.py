"""The processes of one pod, behind one port (docs/decisions/0032-processes-of-a-pod.md).

In: the listening sockets and the settings. Out: the service, as one process would serve it. Guaranteed: one writer; a front or a
reader that ends loses nothing that was answered and is started again; when the writer ends, all end; metrics are those of all.

plan.py           how many processes, and what each of them does
state.py          the few facts that all of them share in memory
supervisor.py     starts the processes, restarts those that end, and stops them in order
member.py         what a process has besides the service: its part, its connections to the others
dispatch.py       decides which process answers a request
relay.py          has a request answered by another process
writer_link.py    the writer's end of the connections by which others hand it events
remote_writer.py  their end: looks like the writer
pod_metrics.py    the metrics of all processes as one
messages.py       local sockets, and messages over them
"""
