package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	kubelet = api.DevicePluginPath + "kubelet.sock"
	prefix  = "GPU-lab-"
)

// devices answers the kubelet for one resource. There is no GPU behind it; a container that is given some finds as many device nodes
// /dev/nvidiaN, each of which is the host's /dev/null.
type devices struct {
	api.UnimplementedDevicePluginServer
	count int
}

func (d *devices) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch names the devices once and keeps the stream open: its end tells the kubelet that they are gone.
func (d *devices) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	answer := &api.ListAndWatchResponse{}
	for number := range d.count {
		answer.Devices = append(answer.Devices, &api.Device{ID: prefix + strconv.Itoa(number), Health: api.Healthy})
	}
	if err := stream.Send(answer); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Allocate gives each container the device nodes of exactly the devices that the kubelet chose for it.
func (d *devices) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	answer := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		given := &api.ContainerAllocateResponse{}
		for _, id := range container.DevicesIds {
			number, err := strconv.Atoi(strings.TrimPrefix(id, prefix))
			if err != nil || number < 0 || number >= d.count {
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

func gpu(arguments []string) {
	one := &devices{}
	flags := flag.NewFlagSet("gpu", flag.ExitOnError)
	resource := flags.String("resource", "nvidia.com/gpu", "the resource to offer")
	flags.IntVar(&one.count, "count", 8, "how many devices to offer")
	_ = flags.Parse(arguments)
	endpoint := strings.NewReplacer("/", "-", ".", "-").Replace("lab-"+*resource) + ".sock"
	connection, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		request := &api.RegisterRequest{Version: api.Version, Endpoint: endpoint, ResourceName: *resource}
		known, _ := os.Stat(kubelet)
		if _, err := api.NewRegistrationClient(connection).Register(context.Background(), request, grpc.WaitForReady(true)); err != nil {
			log.Fatal(err)
		}
		log.Printf("registered %d × %s", one.count, *resource)
		// A kubelet that starts has forgotten all plugins and makes a socket of its own; whoever started this one starts another.
		for now := known; known != nil && now != nil && os.SameFile(known, now) && now.ModTime().Equal(known.ModTime()); now, _ = os.Stat(kubelet) {
			time.Sleep(time.Second)
		}
		log.Fatal("the kubelet whose plugin this was has gone")
	}()
	serve(filepath.Join(api.DevicePluginPath, endpoint), func(server *grpc.Server) { api.RegisterDevicePluginServer(server, one) })
}
