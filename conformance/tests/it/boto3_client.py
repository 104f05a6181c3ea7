"""What a program with boto3 does: run by the test, with the endpoint and the keys in the environment."""

import io
import os
import urllib.request

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

s3 = boto3.client("s3", config=Config(signature_version="s3v4", retries={"max_attempts": 1}))
bucket = "boto3-bucket"
s3.create_bucket(Bucket=bucket)

# Small objects, with metadata and tags.
s3.put_object(Bucket=bucket, Key="a/ü +%", Body=b"hello", Metadata={"color": "red"}, Tagging="x=1")
got = s3.get_object(Bucket=bucket, Key="a/ü +%")
assert got["Body"].read() == b"hello" and got["Metadata"] == {"color": "red"} and got["TagCount"] == 1, got

# A managed transfer: parts in parallel, with checksums in trailers.
large = os.urandom(12 << 20) + bytes(5 << 20) + b"end"
parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=4)
s3.upload_fileobj(io.BytesIO(large), bucket, "large", Config=parts)
back = io.BytesIO()
s3.download_fileobj(bucket, "large", back, Config=parts)
assert back.getvalue() == large
part = s3.get_object(Bucket=bucket, Key="large", Range="bytes=5242878-5242883")["Body"].read()
assert part == large[5242878:5242884]

# A managed copy, by UploadPartCopy.
s3.copy({"Bucket": bucket, "Key": "large"}, bucket, "copied", Config=parts)
assert s3.get_object(Bucket=bucket, Key="copied")["Body"].read() == large

# Presigned URLs, in both directions.
url = s3.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "by-url"}, ExpiresIn=60)
urllib.request.urlopen(urllib.request.Request(url, data=b"by url", method="PUT")).read()
url = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "by-url"}, ExpiresIn=60)
assert urllib.request.urlopen(url).read() == b"by url"

# Pages.
for n in range(5):
    s3.put_object(Bucket=bucket, Key=f"page/{n}", Body=b"")
pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="page/", PaginationConfig={"PageSize": 2})
keys = [entry["Key"] for page in pages for entry in page["Contents"]]
assert keys == [f"page/{n}" for n in range(5)], keys
folders = s3.list_objects_v2(Bucket=bucket, Delimiter="/")["CommonPrefixes"]
assert [folder["Prefix"] for folder in folders] == ["a/", "page/"], folders

# Errors have codes.
try:
    s3.get_object(Bucket=bucket, Key="missing")
    raise AssertionError("a missing key was found")
except ClientError as error:
    assert error.response["Error"]["Code"] == "NoSuchKey", error
    assert error.response["ResponseMetadata"]["RequestId"], error.response

keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]
deleted = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
assert len(deleted["Deleted"]) == len(keys) and "Errors" not in deleted, deleted
s3.delete_bucket(Bucket=bucket)
print("boto3", boto3.__version__, "passed")
