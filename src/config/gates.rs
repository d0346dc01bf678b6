//! Feature gates: which names Kubernetes 1.36 knows, and which of them have an effect here.
//!
//! An operator gives all components the same gates, so those of other components are taken. A name that nobody knows is
//! an error, as is the other value of a gate that is locked: kube-proxy ends with the same words.

use std::collections::BTreeMap;

use crate::config::validate::Checker;

/// The gate that switches `externalIPs` off.
pub(super) const EXTERNAL_IPS: &str = "AllowServiceExternalIPs";
/// The gate for the streams of `logging.options`.
pub(super) const LOGGING_ALPHA: &str = "LoggingAlphaOptions";
/// The gate for `logging.format: json`.
pub(super) const LOGGING_BETA: &str = "LoggingBetaOptions";

/// Gates that stand for all alpha and all beta gates which are not given themselves.
const ALL: [&str; 2] = ["AllAlpha", "AllBeta"];

impl Checker {
    /// Names and locks. That a gate needs another one is not checked.
    pub(super) fn feature_gates(&mut self, gates: &BTreeMap<String, bool>) {
        for (name, on) in gates {
            let locked = match name.as_str() {
                _ if contains(LOCKED_ON, name) => true,
                _ if contains(LOCKED_OFF, name) => false,
                _ if contains(OPEN, name) || ALL.contains(&name.as_str()) => continue,
                _ => {
                    self.invalid("featureGates", name, "unrecognized feature gate");
                    continue;
                }
            };
            if locked != *on {
                let reason = format!("cannot set feature gate {name} to {on}, feature is locked to {locked}");
                self.invalid("featureGates", format!("{name}={on}"), &reason);
            }
        }
    }
}

fn contains(names: &str, name: &str) -> bool {
    names.split_whitespace().any(|known| known == name)
}

/// Whether `externalIPs` are programmed.
pub(super) fn external_ips(gates: &BTreeMap<String, bool>) -> bool {
    gates.get(EXTERNAL_IPS).copied().unwrap_or(true)
}

/// Whether what is alpha in `logging` may be set.
pub(super) fn logging_alpha(gates: &BTreeMap<String, bool>) -> bool {
    gates.get(LOGGING_ALPHA).or(gates.get(ALL[0])).copied().unwrap_or(false)
}

/// Whether what is beta in `logging` may be set.
pub(super) fn logging_beta(gates: &BTreeMap<String, bool>) -> bool {
    gates.get(LOGGING_BETA).or(gates.get(ALL[1])).copied().unwrap_or(true)
}

// The names are those of `test/compatibility_lifecycle/reference/versioned_feature_list.yaml` in the source tree of
// Kubernetes, by what they are in 1.36, and of `client-go/features/known_features.go`. Two of the former are listed there by
// the name of a constant; here they are as the programs take them: CustomCPUCFSQuotaPeriod and RuntimeClassInImageCriApi.

/// Gates that may be on or off.
const OPEN: &str = "
    APIResponseCompression APIServerIdentity APIServingWithRoutine AllowDNSOnlyNodeCSR
    AllowInsecureKubeletCertificateSigningRequests AllowParsingUserUIDFromCertAuth AllowServiceExternalIPs
    AllowUnsafeMalformedObjectDeletion AtomicFIFO AuthorizePodWebsocketUpgradeCreatePermission CBORServingAndStorage
    CPUManagerPolicyAlphaOptions CPUManagerPolicyBetaOptions CRDObservedGenerationTracking CRIListStreaming CSIVolumeHealth
    ChangeContainerStatusOnKubeletRestart ClearingNominatedNodeNameAfterBinding ClientsAllowCARotation ClientsAllowCBOR
    ClientsAllowTLSCacheGC ClientsPreferCBOR CloudControllerManagerWatchBasedRoutesReconciliation
    CloudControllerManagerWebhook ClusterTrustBundle ClusterTrustBundleProjection ComponentFlagz ComponentStatusz
    ConcurrentWatchObjectDecode ConstrainedImpersonation ContainerCheckpoint ContainerRestartRules ContainerStopSignals
    ContextualLogging ControllerManagerReleaseLeaderElectionLockOnExit CoordinatedLeaderElection
    CrossNamespaceVolumeDataSource CustomCPUCFSQuotaPeriod DRAConsumableCapacity DRADeviceBindingConditions
    DRADeviceTaintRules DRADeviceTaints DRAExtendedResource DRAListTypeAttributes DRANodeAllocatableResources
    DRAPartitionableDevices DRAPrioritizedList DRAResourceClaimDeviceStatus DRAResourceClaimGranularStatusAuthorization
    DRAResourcePoolStatus DRASchedulerFilterTimeout DRAWorkloadResourceClaims DeclarativeValidationBeta
    DeclarativeValidationTakeover DeploymentReplicaSetTerminatingReplicas DetectCacheInconsistency
    DisableCPUQuotaWithExclusiveCPUs EnvFiles EventedPLEG ExtendWebSocketsToKubelet GangScheduling GenericWorkload
    GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority HPAConfigurableTolerance HPAScaleToZero HostnameOverride
    ImageVolumeWithDigest InOrderInformersBatchProcess InPlacePodLevelResourcesVerticalScaling
    InPlacePodVerticalScalingExclusiveCPUs InPlacePodVerticalScalingExclusiveMemory InPlacePodVerticalScalingInitContainers
    InformerResourceVersion KMSv1 KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages KubeletInUserNamespace
    KubeletPodResourcesListUseActivePods KubeletRegistrationGetOnExistsOnly KubeletSeparateDiskGC
    KubeletServiceAccountTokenForCredentialProviders ListFromCacheSnapshot LocalStorageCapacityIsolationFSQuotaMonitoring
    LoggingAlphaOptions LoggingBetaOptions ManifestBasedAdmissionControlConfig MatchLabelKeysInPodTopologySpread
    MatchLabelKeysInPodTopologySpreadSelectorMerge MaxUnavailableStatefulSet MemoryQoS MutablePVNodeAffinity
    MutablePodResourcesForSuspendedJobs MutableSchedulingDirectivesForSuspendedJobs MutatingAdmissionPolicy NativeHistograms
    NodeDeclaredFeatures NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching PLEGOnDemandRelist
    PersistentVolumeClaimUnusedSinceTime PodAndContainerStatsFromCRI PodCertificateRequest PodDeletionCost
    PodLevelResourceManagers PodLevelResources PodLogsQuerySplitStreams PodReadyToStartContainersCondition
    PodTopologyLabelsAdmission PodsAPI PortForwardWebsockets PreventStaticPodAPIReferences QOSReserved
    ReduceDefaultCrashLoopBackOffDecay RelaxedServiceNameValidation ReloadKubeletClientCAFile
    ReloadKubeletServerCertificateFile RemoteRequestHeaderUID ResourceHealthStatus ResourceHealthStatusMessage
    RestartAllContainersOnContainerExits RotateKubeletServerCertificate RuntimeClassInImageCriApi SELinuxMount
    SchedulerAsyncAPICalls SchedulerAsyncPreemption SchedulerPopFromBackoffQ ServiceAccountNodeAudienceRestriction
    ServiceCIDRStatusFieldWiping ShardedListAndWatch SizeBasedListCostEstimate StaleControllerConsistencyDaemonSet
    StaleControllerConsistencyJob StaleControllerConsistencyReplicaSet StaleControllerConsistencyStatefulSet
    StatefulSetSemanticRevisionComparison StorageCapacityScoring StorageNamespaceIndex StorageVersionAPI StorageVersionHash
    StorageVersionMigrator StrictIPCIDRValidation StructuredAuthenticationConfigurationEgressSelector
    StructuredAuthenticationConfigurationJWKSMetrics TaintTolerationComparisonOperators
    TokenRequestServiceAccountUIDValidation TopologyAwareWorkloadScheduling TopologyManagerPolicyAlphaOptions
    TopologyManagerPolicyBetaOptions TranslateStreamCloseWebsocketRequests UnauthenticatedHTTP2DOSMitigation
    UnknownVersionInteroperabilityProxy UnlockWhileProcessingFIFO UserNamespacesHostNetworkSupport VolumeLimitScaling
    WatchCacheInitializationPostStartHook WatchList WatchListClient WindowsCPUAndMemoryAffinity WindowsGracefulNodeShutdown
    WindowsHostNetwork WorkloadAwarePreemption WorkloadWithJob
";

/// Gates that can only be on.
const LOCKED_ON: &str = "
    APIServerTracing AggregatedDiscoveryRemoveBetaType AnonymousAuthConfigurableEndpoints AnyVolumeDataSource
    AuthorizeNodeWithSelectors AuthorizeWithSelectors BtreeWatchCache CPUManagerPolicyOptions CRDValidationRatcheting
    CSIServiceAccountTokenSecrets ConsistentListFromCache CustomResourceFieldSelectors DRAAdminAccess DeclarativeValidation
    DisableAllocatorDualWrite DisableNodeKubeProxyVersion DynamicResourceAllocation ExecProbeTimeout
    ExternalServiceAccountTokenSigner ImageMaximumGCAge ImageVolume InOrderInformers InPlacePodVerticalScaling
    JobBackoffLimitPerIndex JobManagedBy JobPodReplacementPolicy JobSuccessPolicy KubeletCgroupDriverFromCRI
    KubeletFineGrainedAuthz KubeletPSI KubeletPodResourcesDynamicResources KubeletPodResourcesGet KubeletTracing
    LogarithmicScaleDown MatchLabelKeysInPodAffinity MultiCIDRServiceAllocator MutableCSINodeAllocatableCount
    NFTablesProxyMode NodeInclusionPolicyInPodTopologySpread NodeLogQuery NodeSwap OrderedNamespaceDeletion
    PodLifecycleSleepAction PodLifecycleSleepActionAllowZero PodObservedGenerationTracking PodSchedulingReadiness
    PreferSameTrafficDistribution ProcMountType RecoverVolumeExpansionFailure RecursiveReadOnlyMounts
    RelaxedDNSSearchValidation RelaxedEnvironmentVariableValidation ResilientWatchCacheInitialization RetryGenerateName
    SELinuxChangePolicy SELinuxMountReadWriteOncePod SchedulerQueueingHints SeparateTaintEvictionController
    ServiceAccountTokenJTI ServiceAccountTokenNodeBinding ServiceAccountTokenNodeBindingValidation
    ServiceAccountTokenPodNodeInfo SidecarContainers StreamingCollectionEncodingToJSON
    StreamingCollectionEncodingToProtobuf StructuredAuthenticationConfiguration SupplementalGroupsPolicy SystemdWatchdog
    TopologyManagerPolicyOptions UserNamespacesSupport VolumeAttributesClass WinDSR WinOverlay
";

/// Gates that can only be off.
const LOCKED_OFF: &str = "AllowOverwriteTerminationGracePeriodSeconds GitRepoVolumeDriver SeparateCacheWatchRPC";

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn complaints(gates: &[(&str, bool)]) -> Vec<String> {
        let gates = gates.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
        let mut check = Checker::default();
        check.feature_gates(&gates);
        check.errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_known_gate_is_in_one_list_once() {
        let mut names: Vec<&str> = [OPEN, LOCKED_ON, LOCKED_OFF].into_iter().flat_map(str::split_whitespace).collect();
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric())));
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), all), (240, 240));
    }

    #[rstest]
    #[case("AllAlpha", true)]
    #[case("AllBeta", false)]
    #[case("AllowServiceExternalIPs", false)]
    #[case("PreferSameTrafficDistribution", true)]
    #[case("MultiCIDRServiceAllocator", true)]
    #[case("NFTablesProxyMode", true)]
    #[case("ComponentFlagz", false)]
    #[case("ComponentStatusz", true)]
    #[case("NativeHistograms", true)]
    #[case("LoggingAlphaOptions", true)]
    #[case("LoggingBetaOptions", false)]
    #[case("ContextualLogging", false)]
    #[case("SidecarContainers", true)]
    #[case("GitRepoVolumeDriver", false)]
    #[case("WatchListClient", true)]
    fn a_gate_that_kubernetes_knows_is_taken(#[case] name: &str, #[case] on: bool) {
        assert_eq!(complaints(&[(name, on)]), Vec::<String>::new());
    }

    #[test]
    fn unknown_gates_and_the_other_value_of_locked_ones_are_errors() {
        assert_eq!(
            complaints(&[
                ("NFTablesProxyMode", false),
                ("GitRepoVolumeDriver", true),
                ("Foo", true),
                ("watchList", true)
            ]),
            [
                "KubeProxyConfiguration.featureGates: Invalid value: \"Foo\": unrecognized feature gate",
                "KubeProxyConfiguration.featureGates: Invalid value: \"GitRepoVolumeDriver=true\": cannot set feature gate \
                 GitRepoVolumeDriver to true, feature is locked to false",
                "KubeProxyConfiguration.featureGates: Invalid value: \"NFTablesProxyMode=false\": cannot set feature gate \
                 NFTablesProxyMode to false, feature is locked to true",
                "KubeProxyConfiguration.featureGates: Invalid value: \"watchList\": unrecognized feature gate",
            ]
        );
    }

    #[test]
    fn all_alpha_and_all_beta_decide_on_gates_that_are_not_given() {
        let gates = |given: &[(&str, bool)]| given.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
        for (given, alpha, beta) in [
            (&[][..], false, true),
            (&[("AllAlpha", true), ("AllBeta", false)], true, false),
            (&[("AllAlpha", true), (LOGGING_ALPHA, false)], false, true),
            (&[("AllBeta", false), (LOGGING_BETA, true)], false, true),
        ] {
            assert_eq!((logging_alpha(&gates(given)), logging_beta(&gates(given))), (alpha, beta), "{given:?}");
        }
        assert!(external_ips(&gates(&[("AllBeta", false), ("AllAlpha", false)])));
    }
}
