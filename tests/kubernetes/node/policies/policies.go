// Package policies enforces NetworkPolicies with kube-router's controller (iptables and ipset), and nothing else of kube-router.
package policies

import (
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"github.com/spf13/cobra"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// NewCommand is `network-policies KUBECONFIG NODE SERVICES`, where SERVICES is the range of the Services' addresses.
func NewCommand() *cobra.Command {
	return &cobra.Command{
		Use:  "network-policies KUBECONFIG NODE SERVICES",
		Args: cobra.ExactArgs(3),
		RunE: func(command *cobra.Command, arguments []string) error {
			stopped, stop := signal.NotifyContext(command.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return enforce(arguments[0], arguments[1], arguments[2], stopped.Done())
		},
	}
}

func enforce(kubeconfig, node, services string, stopped <-chan struct{}) error {
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(access)
	if err != nil {
		return err
	}
	controller, err := newController(client, configured(node, services), stopped)
	if err != nil {
		return err
	}
	heartbeats := make(chan *healthcheck.ControllerHeartbeat, 1)
	go func() {
		for range heartbeats { // the controller waits where nobody takes them
		}
	}()
	var running sync.WaitGroup
	running.Add(1)
	go controller.Run(heartbeats, stopped, &running)
	running.Wait()
	return nil
}

func configured(node, services string) *options.KubeRouterConfig {
	config := options.NewKubeRouterConfig()
	config.HostnameOverride = node
	config.ClusterIPCIDRs = []string{services}
	config.ExternalIPCIDRs, config.LoadBalancerCIDRs = nil, nil
	config.EnableIPv4, config.EnableIPv6 = true, false
	config.IPTablesSyncPeriod = 30 * time.Second
	return config
}

func newController(client *kubernetes.Clientset, config *options.KubeRouterConfig, stopped <-chan struct{}) (*netpol.NetworkPolicyController, error) {
	watched := informers.NewSharedInformerFactory(client, 0)
	pods := watched.Core().V1().Pods().Informer()
	namespaces := watched.Core().V1().Namespaces().Informer()
	policies := watched.Networking().V1().NetworkPolicies().Informer()
	watched.Start(stopped)
	watched.WaitForCacheSync(stopped)
	iptables, sets, err := netpol.NewIPTablesHandlers(config)
	if err != nil {
		return nil, err
	}
	controller, err := netpol.NewNetworkPolicyController(client, config, pods, policies, namespaces, &sync.Mutex{}, iptables, sets)
	if err != nil {
		return nil, err
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods:       controller.PodEventHandler,
		namespaces: controller.NamespaceEventHandler,
		policies:   controller.NetworkPolicyEventHandler,
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return nil, err
		}
	}
	return controller, nil
}
