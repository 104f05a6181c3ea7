//! What a cloud or hypervisor takes: a format, its variant, and a size that it accepts.

use crate::Target;

/// A cloud or hypervisor to make an image for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// AWS: raw, which `coldsnap` and VM Import take.
    Aws,
    /// Azure: a fixed VHD of whole mebibytes.
    Azure,
    /// Google Cloud: a `tar.gz` that holds `disk.raw`, of whole gibibytes.
    Gcp,
    /// VMware vSphere: an OVA with a stream-optimized VMDK.
    Vsphere,
    /// OpenStack with Ceph: raw, from which volumes are cloned without a copy.
    OpenstackCeph,
    /// Hyper-V: a dynamic VHDX.
    Hyperv,
    /// VirtualBox: a dynamic VDI.
    Virtualbox,
    /// Proxmox VE: qcow2.
    Proxmox,
    /// `KubeVirt`: qcow2 compressed by Zstandard, as container disks and the containerized data importer take it.
    Kubevirt,
}

impl Profile {
    /// Every profile there is.
    pub const ALL: [Self; 9] = [
        Self::Aws,
        Self::Azure,
        Self::Gcp,
        Self::Vsphere,
        Self::OpenstackCeph,
        Self::Hyperv,
        Self::Virtualbox,
        Self::Proxmox,
        Self::Kubevirt,
    ];

    /// The name, which stands after `profile=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Azure => "azure",
            Self::Gcp => "gcp",
            Self::Vsphere => "vsphere",
            Self::OpenstackCeph => "openstack-ceph",
            Self::Hyperv => "hyperv",
            Self::Virtualbox => "virtualbox",
            Self::Proxmox => "proxmox",
            Self::Kubevirt => "kubevirt",
        }
    }

    /// What is made.
    pub(crate) const fn target(self) -> Target {
        match self {
            Self::Aws | Self::OpenstackCeph => Target::RAW,
            Self::Azure => Target::VHD_FIXED,
            Self::Gcp => Target::RAW_TAR_GZ,
            Self::Vsphere => Target::OVA,
            Self::Hyperv => Target::VHDX,
            Self::Virtualbox => Target::VDI,
            Self::Proxmox => Target::QCOW2,
            Self::Kubevirt => Target::QCOW2_ZSTD,
        }
    }

    /// What the size of the disk is a multiple of, in bytes; zeros are added as needed.
    ///
    /// Azure: "Prepare a Windows VHD or VHDX to upload to Azure", on sizes. Google: "Manually importing boot disks", on the
    /// size of the disk file. AWS: a snapshot consists of blocks of 512 KiB, and a volume of whole gibibytes, which the
    /// import itself rounds up to.
    pub(crate) const fn alignment(self) -> u64 {
        match self {
            Self::Azure => 1 << 20,
            Self::Gcp => 1 << 30,
            _ => 1,
        }
    }

    /// The file name extension, without the leading dot, as unlike that of each other target as the profiles are.
    pub(crate) const fn extension(self) -> &'static str {
        match self {
            Self::Aws => "aws.raw",
            Self::Azure => "azure.vhd",
            Self::Gcp => "gcp.tar.gz",
            Self::Vsphere => "vsphere.ova",
            Self::OpenstackCeph => "openstack-ceph.raw",
            Self::Hyperv => "hyperv.vhdx",
            Self::Virtualbox => "virtualbox.vdi",
            Self::Proxmox => "proxmox.qcow2",
            Self::Kubevirt => "kubevirt.qcow2",
        }
    }
}
