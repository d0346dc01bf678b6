//! Flags of the connection to the API server, which the file has under `clientConnection`.

use crate::config::groups::RawClient;

/// kube-proxy's flags of the connection to the API server.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "API server")]
pub struct ClientFlags {
    /// Type of request bodies [default: application/vnd.kubernetes.protobuf]
    #[arg(long, value_name = "TYPE")]
    pub kube_api_content_type: Option<String>,
    /// Requests per second, on average; negative: no limit [default: 5]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub kube_api_qps: Option<f32>,
    /// Requests that may be made at once after a pause [default: 10]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub kube_api_burst: Option<i32>,
}

impl ClientFlags {
    /// The flags, of which a file takes the place, with whether they were given.
    pub(super) fn given(&self) -> [(&'static str, bool); 3] {
        [
            ("--kube-api-content-type", self.kube_api_content_type.is_some()),
            ("--kube-api-qps", self.kube_api_qps.is_some()),
            ("--kube-api-burst", self.kube_api_burst.is_some()),
        ]
    }

    /// The section that the flags alone make.
    pub(super) fn to_raw(&self) -> RawClient {
        RawClient {
            accept_content_types: String::new(),
            content_type: self.kube_api_content_type.clone().unwrap_or_default(),
            qps: self.kube_api_qps,
            burst: self.kube_api_burst,
        }
    }
}
