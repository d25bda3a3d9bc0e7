// Runs external-provisioner's own controller: upstream's main package cannot be installed, because its module replaces others.
//
// Left out: leader election, topology, snapshots, clones and capacity, which the lab's driver does not have.
package main

import (
	"context"
	"flag"
	"log"
	"os/signal"
	"syscall"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/metrics"
	"github.com/kubernetes-csi/external-provisioner/v6/pkg/controller"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	translation "k8s.io/csi-translation-lib"
	"k8s.io/klog/v2"
	library "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

func main() {
	address := flag.String("csi-address", "/csi/csi.sock", "the driver's socket")
	metadata := flag.Bool("extra-create-metadata", false, "tell the driver the claim's name and namespace")
	timeout := flag.Duration("timeout", 10*time.Second, "for how long the driver may take")
	kubeconfig := flag.String("kubeconfig", "", "outside a cluster only")
	klog.InitFlags(nil)
	flag.Parse()
	root, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	settings, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	must(err)
	client, err := kubernetes.NewForConfig(settings)
	must(err)
	connection, err := controller.Connect(root, *address, metrics.NewCSIMetricsManager(""))
	must(err)
	must(controller.Probe(root, connection, *timeout))
	name, err := controller.GetDriverName(connection, *timeout)
	must(err)
	plugin, able, err := controller.GetDriverCapabilities(connection, *timeout)
	must(err)

	factory := informers.NewSharedInformerFactory(client, controller.ResyncPeriodOfCsiNodeInformer)
	claims, classes := factory.Core().V1().PersistentVolumeClaims(), factory.Storage().V1().StorageClasses()
	provisioner := controller.NewCSIProvisioner(
		client, *timeout, name, "pvc", -1, connection, nil, name, plugin, able, "", false, true, translation.New(),
		classes.Lister(), nil, nil, claims.Lister(), nil, nil, *metadata, "", nil, false, false, nil,
	)
	running := library.NewProvisionController(
		root, client, name, provisioner,
		library.LeaderElection(false), library.FailedProvisionThreshold(0), library.FailedDeleteThreshold(0),
		library.ClaimsInformer(claims.Informer()), library.AddFinalizer(true),
	)
	factory.Start(root.Done())
	factory.WaitForCacheSync(root.Done())
	running.Run(root)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
