module lab.example/pause

go 1.25.0
