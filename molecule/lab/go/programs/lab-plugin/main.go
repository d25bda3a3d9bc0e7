// What the lab's kubelets are given in the place of other people's plugins: `gpu` offers devices, `nfs` mounts volumes.
package main

import (
	"context"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"
)

func main() {
	plugins := map[string]func([]string){"gpu": gpu, "nfs": nfs}
	if len(os.Args) < 2 || plugins[os.Args[1]] == nil {
		log.Fatal("usage: lab-plugin gpu|nfs --option=value ...")
	}
	plugins[os.Args[1]](os.Args[2:])
}

// serve answers on a socket until the process is told to end.
func serve(path string, register func(*grpc.Server)) {
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(
		func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			answer, err := handle(ctx, request)
			if err != nil {
				log.Printf("%s: %v", info.FullMethod, err)
			}
			return answer, err
		}))
	register(server)
	done := make(chan os.Signal, 1)
	signal.Notify(done, syscall.SIGTERM, syscall.SIGINT)
	// At once: a device plugin's stream to the kubelet never ends by itself, and the kubelet asks again for a volume.
	go func() { <-done; server.Stop() }()
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
