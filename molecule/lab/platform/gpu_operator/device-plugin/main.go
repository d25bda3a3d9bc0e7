// Lab device plugin: offers a worker's GPUs to the real kubelet. There is no GPU behind them; a container that is given some finds
// as many device nodes /dev/nvidiaN, each of which is the host's /dev/null.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const prefix = "GPU-lab-"

// plugin answers the kubelet for one resource.
type plugin struct {
	api.UnimplementedDevicePluginServer
	count int
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch names the devices once and keeps the stream open: its end tells the kubelet that they are gone.
func (p *plugin) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	answer := &api.ListAndWatchResponse{}
	for number := range p.count {
		answer.Devices = append(answer.Devices, &api.Device{ID: prefix + strconv.Itoa(number), Health: api.Healthy})
	}
	if err := stream.Send(answer); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Allocate gives each container the device nodes of exactly the devices that the kubelet chose for it.
func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	answer := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		given := &api.ContainerAllocateResponse{}
		for _, id := range container.DevicesIds {
			number, err := strconv.Atoi(strings.TrimPrefix(id, prefix))
			if err != nil || number < 0 || number >= p.count {
				return nil, fmt.Errorf("no such device: %q", id)
			}
			given.Devices = append(given.Devices, &api.DeviceSpec{
				ContainerPath: fmt.Sprintf("/dev/nvidia%d", number), HostPath: "/dev/null", Permissions: "rw",
			})
		}
		answer.ContainerResponses = append(answer.ContainerResponses, given)
	}
	return answer, nil
}

// identity tells one kubelet's socket from its successor's; it is empty while there is none.
func identity(path string) string {
	found, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return fmt.Sprint(found.Sys().(*syscall.Stat_t).Ino, found.ModTime().UnixNano())
}

// register tells the kubelet under which socket this plugin answers.
func register(kubelet, endpoint, resource string) error {
	connection, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(connection).Register(limited, &api.RegisterRequest{
		Version: api.Version, Endpoint: endpoint, ResourceName: resource,
	})
	return err
}

// serve answers at the plugin's own socket until it is told to stop.
func serve(p *plugin, socket string) (*grpc.Server, error) {
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	go func() {
		if err := server.Serve(listener); err != nil {
			log.Fatal(err)
		}
	}()
	return server, nil
}

func main() {
	directory := flag.String("directory", api.DevicePluginPath, "where the kubelet's socket is")
	resource := flag.String("resource", "nvidia.com/gpu", "the resource to offer")
	p := &plugin{}
	flag.IntVar(&p.count, "count", 8, "how many devices to offer")
	flag.Parse()
	kubelet := filepath.Join(*directory, "kubelet.sock")
	endpoint := strings.NewReplacer("/", "-", ".", "-").Replace("lab-"+*resource) + ".sock"
	var server *grpc.Server
	registered := ""
	// A kubelet that starts empties the directory and has forgotten all plugins.
	for ; ; time.Sleep(time.Second) {
		now := identity(kubelet)
		if now == "" || now == registered {
			continue
		}
		if server != nil {
			server.Stop()
		}
		var err error
		if server, err = serve(p, filepath.Join(*directory, endpoint)); err == nil {
			err = register(kubelet, endpoint, *resource)
		}
		if err != nil {
			log.Print(err)
			continue
		}
		registered = now
		log.Printf("registered %d × %s", p.count, *resource)
	}
}
