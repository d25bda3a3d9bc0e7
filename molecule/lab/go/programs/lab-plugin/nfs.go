package main

import (
	"context"
	"flag"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Where the file servers' exports lie, <servers>/<server>/<share>, and where the driver and the kubelet meet.
const (
	name      = "nfs.csi.k8s.io"
	servers   = "/srv/nfs"
	separator = "#"
	socket    = "/csi/csi.sock"
	onNode    = "/var/lib/kubelet/plugins/csi-nfsplugin/csi.sock"
)

// driver is in the place of nfs.csi.k8s.io: a "server" is a directory that all nodes of the lab share, a "mount" is a bind mount.
//
// It keeps to what upstream's driver does with a StorageClass's server, share, subDir and onDelete. NFS itself, its locks and its limits are
// not there.
type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer

	node, onDelete string
}

func nfs(arguments []string) {
	one := &driver{}
	flags := flag.NewFlagSet("nfs", flag.ExitOnError)
	flags.StringVar(&one.node, "nodeid", "", "name of the node whose kubelet shall know the driver")
	flags.StringVar(&one.onDelete, "default-ondelete-policy", "delete", "what becomes of the files of a volume")
	_ = flags.Parse(arguments)
	if one.node != "" {
		go serve("/registration/"+name+"-reg.sock", func(server *grpc.Server) { registration.RegisterRegistrationServer(server, one) })
	}
	serve(socket, func(server *grpc.Server) {
		csi.RegisterIdentityServer(server, one)
		csi.RegisterControllerServer(server, one)
		csi.RegisterNodeServer(server, one)
	})
}

// GetInfo tells the kubelet where the driver listens.
func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: name, Endpoint: onNode, SupportedVersions: []string{"1.0.0"}}, nil
}

func (d *driver) NotifyRegistrationStatus(
	_ context.Context, now *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	if !now.GetPluginRegistered() {
		log.Fatalf("the kubelet refused %s: %s", name, now.GetError())
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// export is the directory of a server's share; like a server, it refuses one that it does not export.
func export(server, share string) (string, error) {
	path := filepath.Join(servers, filepath.Base(server), filepath.Join("/", share))
	if found, err := os.Stat(path); err != nil || !found.IsDir() {
		return "", status.Errorf(codes.Internal, "mount.nfs: access denied by server while mounting %s:%s", server, share)
	}
	return path, nil
}

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: name, VendorVersion: "lab"}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (d *driver) GetPluginCapabilities(
	context.Context, *csi.GetPluginCapabilitiesRequest,
) (*csi.GetPluginCapabilitiesResponse, error) {
	service := &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}
	one := &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: service}}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{one}}, nil
}

func (d *driver) ControllerGetCapabilities(
	context.Context, *csi.ControllerGetCapabilitiesRequest,
) (*csi.ControllerGetCapabilitiesResponse, error) {
	rpc := &csi.ControllerServiceCapability_RPC{Type: csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME}
	one := &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: rpc}}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: []*csi.ControllerServiceCapability{one}}, nil
}

// CreateVolume makes the volume's directory below the share. As upstream, it takes a directory that is there already as it is.
func (d *driver) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	given := map[string]string{}
	var words []string
	for key, value := range request.GetParameters() {
		switch lower := strings.ToLower(key); lower {
		case "server", "share", "subdir", "ondelete", "mountpermissions":
			given[lower] = value
		case "csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pv/name":
			parts := strings.Split(strings.TrimPrefix(lower, "csi.storage.k8s.io/"), "/")
			words = append(words, "${"+parts[0]+".metadata."+parts[1]+"}", value)
		default:
			return nil, status.Errorf(codes.InvalidArgument, "invalid parameter %q in storage class", key)
		}
	}
	if given["server"] == "" {
		return nil, status.Error(codes.InvalidArgument, "server is a required parameter")
	}
	policy := given["ondelete"]
	if !slices.Contains([]string{"", "delete", "retain"}, policy) {
		return nil, status.Errorf(codes.InvalidArgument, "invalid value %s for OnDelete", policy)
	}
	share, err := export(given["server"], given["share"])
	if err != nil {
		return nil, err
	}
	directory := strings.NewReplacer(words...).Replace(given["subdir"])
	if directory == "" {
		directory = request.GetName()
	}
	if err := os.MkdirAll(filepath.Join(share, filepath.Join("/", directory)), 0o777); err != nil {
		return nil, err
	}
	volume := &csi.Volume{
		VolumeId:      strings.Join([]string{given["server"], strings.Trim(given["share"], "/"), directory, request.GetName(), policy}, separator),
		CapacityBytes: 0, // any size: a directory has none
		VolumeContext: map[string]string{"server": given["server"], "share": given["share"], "subdir": directory},
	}
	return &csi.CreateVolumeResponse{Volume: volume}, nil
}

// DeleteVolume removes the volume's directory, unless its class or the driver's option says to keep it.
func (d *driver) DeleteVolume(_ context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	parts := strings.Split(request.GetVolumeId(), separator)
	if len(parts) != 5 {
		return &csi.DeleteVolumeResponse{}, nil // not one of ours: as upstream, nothing to do
	}
	policy := parts[4]
	if policy == "" {
		policy = d.onDelete
	}
	if policy == "delete" {
		share, err := export(parts[0], parts[1])
		if err != nil {
			return nil, err
		}
		if err := os.RemoveAll(filepath.Join(share, filepath.Join("/", parts[2]))); err != nil {
			return nil, err
		}
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

func (d *driver) NodePublishVolume(_ context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	where, target := request.GetVolumeContext(), request.GetTargetPath()
	share, err := export(where["server"], where["share"])
	if err != nil {
		return nil, err
	}
	source := filepath.Join(share, filepath.Join("/", where["subdir"]))
	if err := os.MkdirAll(target, 0o750); err != nil {
		return nil, err
	}
	// The kubelet asks again for what is mounted already.
	var here, above syscall.Stat_t
	if syscall.Stat(target, &here) == nil && syscall.Stat(source, &above) == nil && here.Ino == above.Ino && here.Dev == above.Dev {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
		return nil, status.Errorf(codes.Internal, "mount %s: %v", source, err)
	}
	if request.GetReadonly() || slices.Contains(request.GetVolumeCapability().GetMount().GetMountFlags(), "ro") {
		if err := syscall.Mount("", target, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
			return nil, status.Errorf(codes.Internal, "remount %s: %v", target, err)
		}
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (d *driver) NodeUnpublishVolume(_ context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	err := syscall.Unmount(request.GetTargetPath(), 0)
	if err != nil && err != syscall.EINVAL && !os.IsNotExist(err) {
		return nil, err
	}
	// Never with what is in it: were it still mounted, these would be the user's files.
	if err := os.Remove(request.GetTargetPath()); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
