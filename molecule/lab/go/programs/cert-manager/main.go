// Runs cert-manager's own controllers, webhook, CA injector and API check: upstream's main packages are modules that cannot be had.
//
// The first word is the part, the rest is what upstream's chart passes to it. Left out: ACME with its cloud SDKs, and leader election.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/cert-manager/cert-manager/internal/webhook"
	cmscheme "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/scheme"
	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/cainjector"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificate-shim/ingresses"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/cert-manager/cert-manager/pkg/util/cmapichecker"
	"github.com/cert-manager/cert-manager/pkg/webhook/options"
)

// Upstream's defaults: workers of each controller, pauses after a refused request, and where the health is asked for.
const (
	workers       = 5
	shortestPause = time.Hour
	longestPause  = 32 * time.Hour
	healthAddress = ":9403"
)

func main() {
	parts := map[string]func(context.Context, []string) error{
		"controller": controllers, "webhook": admission, "cainjector": injector, "startupapicheck": check,
	}
	if len(os.Args) < 2 || parts[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: cert-manager controller|webhook|cainjector|startupapicheck [option …]")
		os.Exit(2)
	}
	root, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	logf.InitLogs()
	ctrl.SetLogger(logf.Log)
	if err := parts[os.Args[1]](logf.NewContext(root, logf.Log, os.Args[1]), os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// parse takes the options that the lab knows; those that are only named are accepted and have no effect.
func parse(arguments []string, flags *pflag.FlagSet, ignored ...string) error {
	flags.CountP("v", "v", "has no effect")
	for _, name := range ignored {
		flags.String(name, "", "has no effect")
	}
	return flags.Parse(arguments)
}

func controllers(root context.Context, arguments []string) error {
	settings := controller.ContextOptions{KubernetesAPIQPS: 20, KubernetesAPIBurst: 50}
	flags := pflag.NewFlagSet("controller", pflag.ContinueOnError)
	flags.StringVar(&settings.ClusterResourceNamespace, "cluster-resource-namespace", "kube-system", "secrets of ClusterIssuers")
	flags.BoolVar(&settings.EnableOwnerRef, "enable-certificate-owner-ref", false, "a secret goes with its certificate")
	err := parse(arguments, flags, "leader-election-namespace", "acme-http01-solver-image", "max-concurrent-challenges")
	if err != nil {
		return err
	}
	settings.CertificateRequestMinimumBackoffDuration = shortestPause
	settings.CertificateRequestMaximumBackoffDuration = longestPause
	settings.CopiedAnnotationPrefixes = []string{"*", "-kubectl.kubernetes.io/", "-fluxcd.io/", "-argocd.argoproj.io/"}
	settings.DefaultIssuerKind, settings.DefaultIssuerGroup = "Issuer", "cert-manager.io"
	settings.DefaultAutoCertificateAnnotations = []string{"kubernetes.io/tls-acme"}
	factory, err := controller.NewContextFactory(root, settings)
	if err != nil {
		return err
	}
	shared, err := factory.Build()
	if err != nil {
		return err
	}
	group, running := errgroup.WithContext(root)
	for _, construct := range controller.Known() {
		one, err := construct(factory)
		if err != nil {
			return err
		}
		group.Go(func() error { return one.Run(workers, running) })
	}
	shared.SharedInformerFactory.Start(running.Done())
	shared.KubeSharedInformerFactory.Start(running.Done())
	shared.HTTP01ResourceMetadataInformersFactory.Start(running.Done())
	health := &http.Server{Addr: healthAddress, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	group.Go(health.ListenAndServe)
	group.Go(func() error { <-running.Done(); return health.Close() })
	if err := group.Wait(); root.Err() == nil {
		return err
	}
	return nil
}

func admission(root context.Context, arguments []string) error {
	settings, err := options.NewWebhookConfiguration()
	if err != nil {
		return err
	}
	flags := pflag.NewFlagSet("webhook", pflag.ContinueOnError)
	options.AddConfigFlags(flags, settings)
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	server, err := webhook.NewCertManagerWebhookServer(logf.FromContext(root), *settings)
	if err != nil {
		return err
	}
	return server.Run(root)
}

func injector(root context.Context, arguments []string) error {
	if err := parse(arguments, pflag.NewFlagSet("cainjector", pflag.ContinueOnError), "leader-election-namespace"); err != nil {
		return err
	}
	known := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		scheme.AddToScheme, cmscheme.AddToScheme, apiextensions.AddToScheme, apiregistration.AddToScheme,
	} {
		if err := add(known); err != nil {
			return err
		}
	}
	config := ctrl.GetConfigOrDie()
	// Its first part becomes the owner of what is injected.
	config.UserAgent = "cert-manager-cainjector"
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:  known,
		Metrics: metricsserver.Options{BindAddress: "0"},
		Client:  client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}}},
	})
	if err != nil {
		return err
	}
	kinds := map[string]bool{}
	for _, one := range []string{"mutatingwebhookconfiguration", "validatingwebhookconfiguration", "apiservice", "customresourcedefinition"} {
		kinds[one] = true
	}
	err = cainjector.RegisterAllInjectors(root, manager, cainjector.SetupOptions{EnabledReconcilersFor: kinds})
	if err != nil {
		return err
	}
	return manager.Start(root)
}

func check(root context.Context, arguments []string) error {
	flags := pflag.NewFlagSet("startupapicheck", pflag.ContinueOnError)
	limit := flags.Duration("wait", time.Minute, "for how long the API may take to work")
	if err := parse(arguments, flags); err != nil {
		return err
	}
	checker, err := cmapichecker.New(ctrl.GetConfigOrDie(), os.Getenv("POD_NAMESPACE"))
	if err != nil {
		return err
	}
	var last error
	err = wait.PollUntilContextTimeout(root, time.Second, *limit, true, func(now context.Context) (bool, error) {
		last = checker.Check(now)
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("the API does not work within %s: %w", *limit, last)
	}
	return nil
}
