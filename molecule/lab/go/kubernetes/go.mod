// Only marks the directory: each minor has a graph of its own beside it.
module lab.example/kubernetes
